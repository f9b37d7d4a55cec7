//! What can go wrong. Text: `op: argument: got ..., expected ...`.

/// A failed call. Nothing has been modified when one is returned by a check.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Wrong rank, shape, size, mode or option.
    #[error("{op}: {argument}: got {got}, expected {expected}")]
    Argument {
        /// The operation.
        op: &'static str,
        /// The argument.
        argument: &'static str,
        /// What came.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// Wrong or mixed element type.
    #[error("{op}: {argument}: got dtype {got}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument.
        argument: &'static str,
        /// What came.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// An index outside a tensor.
    #[error("{op}: {argument}: got index {got}, expected {expected}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The argument.
        argument: &'static str,
        /// What came.
        got: i64,
        /// What is allowed.
        expected: String,
    },
    /// A combination that is not built.
    #[error("{op}: {reason}")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// Which combination.
        reason: String,
    },
    /// The device, its driver or its compiler failed.
    #[error("{device}: {reason}")]
    Device {
        /// Name of the device.
        device: &'static str,
        /// The driver's own text.
        reason: String,
    },
    /// The device has no memory left.
    #[error("{device}: out of memory: {bytes} bytes asked for")]
    OutOfMemory {
        /// Name of the device.
        device: &'static str,
        /// Size of the failed allocation.
        bytes: usize,
    },
}

/// Result of a metalcore call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn argument(
        op: &'static str,
        argument: &'static str,
        got: impl ToString,
        expected: impl ToString,
    ) -> Error {
        Error::Argument { op, argument, got: got.to_string(), expected: expected.to_string() }
    }
}
