//! The operations, one folder each.

pub mod adamw;
pub mod cross_entropy;
pub mod embedding_bag;
pub mod qr;
pub mod rms_norm;
pub mod rope;
pub mod softmax;
