//! Operations on rows: how a row is laid over threads, and the ordered sum over rows of what a weight's gradient is
//! made of. The kernels' side is `prelude/rows.h`.

use super::{Arg, Define, Defines, Gpu, Source, Spec};
use crate::DType;
use crate::error::Result;
use crate::params;
use smallvec::smallvec;

/// In front of the text of a kernel that works on rows.
macro_rules! rows_text {
    () => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/device/gpu/prelude/rows.h"))
    };
}
pub(crate) use rows_text;

/// What a thread holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// One row.
    Forward,
    /// Two rows, and its share of the weight's gradient if there is one.
    Backward,
}

/// How a row is laid over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// A power of two.
    pub threads_per_row: u32,
    /// More than one only where a row has at most 32 threads.
    pub rows_per_group: u32,
    vec: u32,
    chunks: u32,
    /// Whether a row is longer than its threads hold.
    pub stream: bool,
    /// Groups that are to fit on a unit at once.
    pub groups_per_unit: u32,
}

impl Layout {
    /// `aligned`: every tensor starts at a multiple of 16 bytes.
    pub fn new(cols: usize, dtype: DType, pass: Pass, aligned: bool) -> Layout {
        let widest = if dtype.size() == 2 { 8 } else { 4 };
        let vec = if aligned && cols.is_multiple_of(widest as usize) { widest } else { 1 };
        // 16 floats of a row for each thread keep its loads in flight at once. More would spill: a thread has 64
        // registers in a group of 1024, 128 in one of 512, and the backward pass holds x, dy and its share of dw.
        let held = if dtype == DType::F64 { 8 } else { 16 };
        let most_threads = if pass == Pass::Forward && dtype != DType::F64 { 1024 } else { 512 };
        let threads_per_row = cols.div_ceil(held).next_power_of_two().clamp(32, most_threads) as u32;
        let needed = cols.div_ceil((threads_per_row * vec) as usize).max(1).next_power_of_two() as u32;
        let most = held as u32 / vec;
        let rows_per_group = if threads_per_row == 32 { 4 } else { 1 };
        // Backward, 16384 x 4096 on an H200: 94 % of copy bandwidth with 512 threads a unit that hold floats, and with
        // 1024 that hold 16-bit elements as they lie in memory; more slots cost partial sums, fewer leave gaps.
        let resident = if vec == 8 { 1024 } else { 512 };
        let groups_per_unit =
            if pass == Pass::Forward { 1 } else { (resident / (threads_per_row * rows_per_group)).max(1) };
        Layout {
            threads_per_row,
            rows_per_group,
            groups_per_unit,
            vec,
            chunks: needed.min(most),
            stream: needed > most,
        }
    }

    /// The same with fewer than 32 threads for a row that needs no more: for kernels that leave no row early.
    pub fn narrow(self, cols: usize) -> Layout {
        let threads = cols.div_ceil(self.vec as usize).next_power_of_two() as u32;
        if threads >= 32 {
            return self;
        }
        Layout { threads_per_row: threads.max(1), rows_per_group: 128 / threads.max(1), chunks: 1, ..self }
    }

    /// Whether a thread takes more than one element at a time.
    pub fn vectors(&self) -> bool {
        self.vec > 1
    }

    /// Whether a thread takes 8 elements of 16 bits at a time.
    pub fn halves(&self) -> bool {
        self.vec == 8
    }

    /// What the registers of a row's threads hold, how often it is in a row.
    pub fn tiles(&self, cols: usize) -> usize {
        cols.div_ceil((self.threads_per_row * self.chunks * self.vec) as usize).max(1)
    }

    /// Threads of a group.
    pub fn threads(&self) -> u32 {
        self.threads_per_row * self.rows_per_group
    }

    /// What specialises a kernel by its layout.
    pub fn defines(&self, dtype: DType) -> Defines {
        use Define::{Number, Word};
        smallvec![
            Number("GK_F64", u32::from(dtype == DType::F64)),
            Word("ROW_T", dtype.kernel_word()),
            Number("ROW_TPR", self.threads_per_row),
            Number("ROW_ROWS", self.rows_per_group),
            Number("ROW_VEC", self.vec),
            Number("ROW_V", self.chunks),
            Number("ROW_STREAM", u32::from(self.stream)),
            Number("GK_MIN_GROUPS", self.groups_per_unit),
        ]
    }
}

params! {
    /// Sizes of the ordered sum.
    SumSizes as "row_sums_params" { slots: u32, cols: u32 }
}

static SUMS: Source =
    Source { file: "row_sums.h", body: include_str!("prelude/row_sums.h"), declarations: &[SumSizes::DECLARATION] };

/// The ordered sum of the weight's gradient, and of the bias's.
pub fn sums_spec(dtype: DType, weight: DType, bias: Option<DType>) -> Spec {
    let mut defines: Defines = smallvec![
        Define::Number("GK_F64", u32::from(dtype == DType::F64)),
        Define::Word("ROW_W", weight.kernel_word()),
        Define::Number("ROW_BIAS", u32::from(bias.is_some())),
    ];
    defines.extend(bias.map(|bias| Define::Word("ROW_B", bias.kernel_word())));
    Spec { source: &SUMS, entry: "row_sums", threads: 1024, defines }
}

/// Sums the parts of `slots` row slots, (slots, cols) or (slots, 2, cols), to dw and db.
pub fn sum_parts<D: Gpu>(
    device: &D,
    spec: &Spec,
    parts: &D::Buffer,
    dw: &D::Buffer,
    db: Option<&D::Buffer>,
    (slots, cols): (usize, usize),
) -> Result<()> {
    let words = SumSizes { slots: slots as u32, cols: cols as u32 }.words();
    let width = if db.is_some() { 2 * cols } else { cols };
    let mut list: Vec<_> = [Some(parts), Some(dw), db].into_iter().flatten().map(Arg::Buffer).collect();
    list.push(Arg::Params(&words));
    device.launch(spec, width.div_ceil(32), &list)
}
