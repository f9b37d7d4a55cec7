//! One file per operation: its operators, written once over `Host`.

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

use crate::operator::Operator;

/// The operators of every file. AdamW's is made in Python.
const OPERATORS: &[&[Operator]] = &[
    activations::OPERATORS,
    embedding_bag::OPERATORS,
    indexing::OPERATORS,
    trsm::OPERATORS,
    cholesky::OPERATORS,
    svd::OPERATORS,
    eigh::OPERATORS,
    qr::OPERATORS,
    rms_norm::OPERATORS,
    rope::OPERATORS,
    softmax::OPERATORS,
    solve::OPERATORS,
    cross_entropy::OPERATORS,
    layer_norm::OPERATORS,
    kl_div::OPERATORS,
];

/// Every operator.
pub fn all() -> impl Iterator<Item = &'static Operator> + Clone {
    OPERATORS.iter().copied().flatten()
}
