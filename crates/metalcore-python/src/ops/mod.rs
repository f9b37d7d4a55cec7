//! One file per operation: its operators, written once over `Host`.

pub mod adamw;
pub mod cross_entropy;
pub mod embedding_bag;
pub mod qr;
pub mod rms_norm;
pub mod rope;
pub mod softmax;

use crate::operator::Operator;

/// The operators of every file. AdamW's is made in Python.
const OPERATORS: &[&[Operator]] = &[
    embedding_bag::OPERATORS,
    qr::OPERATORS,
    rms_norm::OPERATORS,
    rope::OPERATORS,
    softmax::OPERATORS,
    cross_entropy::OPERATORS,
];

/// Every operator.
pub fn all() -> impl Iterator<Item = &'static Operator> + Clone {
    OPERATORS.iter().copied().flatten()
}
