//! Element types.

use half::{bf16, f16};

/// Type of the elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary64. Not on Metal.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
}

impl DType {
    /// Every type, widest first.
    pub const ALL: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

    /// Size of an element in bytes.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// Unit roundoff u: half the distance from 1 to the next larger number.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            DType::F64 => f64::EPSILON / 2.0,
            DType::F32 => (f32::EPSILON / 2.0) as f64,
            DType::F16 => 1.0 / 2048.0,
            DType::BF16 => 1.0 / 256.0,
        }
    }

    /// The type in which sums and statistics are kept: float64 for float64, else float32.
    pub const fn compute(self) -> DType {
        match self {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }

    /// Short name, as in kernel and test names.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
        }
    }

    /// The word for it in kernel text.
    pub const fn kernel_word(self) -> &'static str {
        match self {
            DType::F64 => "double",
            DType::F32 => "float",
            DType::F16 => "half",
            DType::BF16 => "bfloat",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F64 => "float64",
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
        })
    }
}

/// Type of indices, such as targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// 32 bits, signed.
    I32,
    /// 64 bits, signed.
    I64,
}

impl Index {
    /// Size of an index in bytes.
    pub const fn size(self) -> usize {
        match self {
            Index::I32 => 4,
            Index::I64 => 8,
        }
    }

    /// The word for it in kernel text.
    pub const fn kernel_word(self) -> &'static str {
        match self {
            Index::I32 => "int",
            Index::I64 => "gk_i64",
        }
    }
}

/// A Rust type of indices.
pub trait IndexElement: Copy + Into<i64> + Send + Sync + 'static {
    /// Its [`Index`].
    const INDEX: Index;
}
impl IndexElement for i32 {
    const INDEX: Index = Index::I32;
}
impl IndexElement for i64 {
    const INDEX: Index = Index::I64;
}

/// Calls a generic function with the Rust type of an [`Index`]: `with_index!(index, I => body)`.
#[macro_export]
macro_rules! with_index {
    ($index:expr, $I:ident => $body:expr) => {
        match $index {
            $crate::Index::I32 => {
                type $I = i32;
                $body
            }
            $crate::Index::I64 => {
                type $I = i64;
                $body
            }
        }
    };
}

/// A Rust type that is the element of a tensor.
///
/// # Safety
/// `DTYPE` must describe the memory layout of `Self`, and any bit pattern must be a valid value.
pub unsafe trait Element: Copy + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// Its [`DType`].
    const DTYPE: DType;
    /// Nearest value, rounding to even.
    fn from_f64(value: f64) -> Self;
    /// Exact value.
    fn to_f64(self) -> f64;
}

macro_rules! element {
    ($type:ty, $dtype:expr, $from:expr, $to:expr) => {
        // SAFETY: a plain number whose layout is the one DTYPE names.
        unsafe impl Element for $type {
            const DTYPE: DType = $dtype;
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
            fn to_f64(self) -> f64 {
                $to(self)
            }
        }
    };
}
element!(f64, DType::F64, |v| v, |v| v);
element!(f32, DType::F32, |v| v as f32, f64::from);
element!(f16, DType::F16, f16::from_f64, f16::to_f64);
element!(bf16, DType::BF16, bf16::from_f64, bf16::to_f64);

/// Calls a generic function with the Rust type of a [`DType`]: `with_dtype!(dtype, T => body)`.
#[macro_export]
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
        }
    };
}

/// As [`with_dtype`], for operations on float32 and float64 alone, whose problem has refused the others.
#[macro_export]
macro_rules! with_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            other => unreachable!("{other} was refused when the problem was made"),
        }
    };
}
