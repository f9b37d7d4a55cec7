//! The operations, one folder each.

pub mod activations;
pub mod adamw;
pub mod cholesky;
pub mod cross_entropy;
pub mod eigh;
pub mod embedding_bag;
pub mod indexing;
pub mod kl_div;
pub mod layer_norm;
pub mod qr;
pub mod rms_norm;
pub mod rope;
pub mod softmax;
pub mod solve;
pub mod svd;
pub mod trsm;
