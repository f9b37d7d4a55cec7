//! The operations, one folder each.

pub mod activations;
pub mod adamw;
pub mod qr;
pub mod rms_norm;
