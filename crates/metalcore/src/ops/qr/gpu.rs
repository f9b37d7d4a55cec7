//! GPU form of qr: which kernel, which specialisation, how many groups.

use super::{Args, Mode, OP, Qr};
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::device::{Caps, Run};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one call.
    Sizes as "qr_params" { batch: u32, rows: u32, cols: u32, rank: u32, q_cols: u32, r_rows: u32 }
}

static TILE: Source = Source {
    file: "qr/tile.metal",
    body: concat!(include_str!("reflector.metal"), include_str!("tile.metal")),
    declarations: &[Sizes::DECLARATION],
};
static COLUMN: Source = Source {
    file: "qr/column.metal",
    body: concat!(include_str!("reflector.metal"), include_str!("column.metal")),
    declarations: &[Sizes::DECLARATION],
};

/// How a call is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// In registers.
    Tile { rows_per_thread: u32, lanes: u32, cols: u32, mats: u32, keep: bool },
    /// In device memory, with room for reflectors of this many rows.
    Column { max_rows: u32 },
}

const COLUMN_THREADS: u32 = 512;
/// Rows per thread and threads per column, by what they hold: the first that fits is taken.
const TILES: [(u32, u32); 11] =
    [(8, 1), (8, 2), (8, 4), (12, 4), (16, 4), (32, 2), (16, 8), (32, 4), (16, 16), (32, 8), (16, 32)];

impl Plan {
    fn new(qr: &Qr, caps: &Caps) -> Result<Plan> {
        let wide = if qr.dtype == DType::F64 { 2 } else { 1 };
        let width = qr.cols.max(qr.q_cols()).max(1);
        if width <= 1024 {
            let cols = match width as u32 {
                0..=8 => 8,
                9..=32 => (width as u32).next_multiple_of(16),
                _ => (width as u32).next_multiple_of(32),
            };
            for (rows_per_thread, lanes) in TILES {
                let threads = lanes * cols;
                // 65536 registers for a threadgroup: rows of a, of q and of v, and what else there is.
                let fits = threads * (3 * rows_per_thread + 16) * wide < 65536 && threads <= 1024;
                let whole = threads % 32 == 0 || 32 % threads == 0;
                if qr.rows as u32 <= rows_per_thread * lanes && fits && whole {
                    let mats = (64 / threads).max(1);
                    let held = rows_per_thread * lanes;
                    let rank = held.min(cols);
                    let keep = (mats * rank * (held + 1) * 4 * wide) as usize <= caps.threadgroup_bytes;
                    return Ok(Plan::Tile { rows_per_thread, lanes, cols, mats, keep });
                }
            }
        }
        let max_rows = [512, 1024, 2048, 3072].into_iter().find(|rows| {
            qr.rows <= *rows as usize && (2 * rows + 32) as usize * 4 * wide as usize <= caps.threadgroup_bytes
        });
        max_rows.map(|max_rows| Plan::Column { max_rows }).ok_or_else(|| Error::Unsupported {
            op: OP,
            reason: format!("{} rows of {} on {}: more than threadgroup memory holds", qr.rows, qr.dtype, caps.kind),
        })
    }

    fn spec(&self, dtype: DType) -> Spec {
        use Define::Number;
        let float64 = Number("GK_F64", u32::from(dtype == DType::F64));
        match *self {
            Plan::Tile { rows_per_thread, lanes, cols, mats, keep } => Spec {
                source: &TILE,
                entry: "qr_tile",
                threads: lanes * cols * mats,
                defines: smallvec![
                    float64,
                    Number("QR_R", rows_per_thread),
                    Number("QR_LANES", lanes),
                    Number("QR_COLS", cols),
                    Number("QR_MATS", mats),
                    Number("QR_KEEP", u32::from(keep)),
                ],
            },
            Plan::Column { max_rows } => Spec {
                source: &COLUMN,
                entry: "qr_column",
                threads: COLUMN_THREADS,
                defines: smallvec![float64, Number("QR_THREADS", COLUMN_THREADS), Number("QR_MAX_ROWS", max_rows)],
            },
        }
    }
}

/// Whether a vendor's QR that takes one matrix after the other (cuSOLVER through torch) is faster than ours: where few
/// matrices are too large for registers. On an H200, `column.metal` needs 4.2 ms for up to 132 matrices of 256 x 256 and 25 ms
/// of 512 x 512, torch 0.76 and 1.9 ms for each: even at 6 and 13 matrices.
pub fn vendor_is_faster(qr: &Qr, caps: &Caps) -> bool {
    match Plan::new(qr, caps) {
        Ok(Plan::Tile { .. }) => false,
        Ok(Plan::Column { .. }) => qr.batch < qr.rows.max(qr.cols) / 40,
        Err(_) => true,
    }
}

impl<D: Gpu> Run<Qr> for D {
    fn run(&self, qr: &Qr, args: Args<'_, Self::Buffer>) -> Result<()> {
        if qr.batch == 0 || qr.rows * (qr.cols + qr.q_cols()) + qr.r_rows() * qr.cols == 0 {
            return Ok(());
        }
        let plan = Plan::new(qr, self.caps())?;
        let spec = plan.spec(qr.dtype);
        let sizes = Sizes {
            batch: qr.batch as u32,
            rows: qr.rows as u32,
            cols: qr.cols as u32,
            rank: qr.rank() as u32,
            q_cols: qr.q_cols() as u32,
            r_rows: qr.r_rows() as u32,
        };
        let words = sizes.words();
        let [a, q, r] = [args.a, args.q, args.r].map(Arg::Buffer);
        match plan {
            Plan::Tile { mats, .. } => {
                self.launch(&spec, qr.batch.div_ceil(mats as usize), &[a, q, r, Arg::Params(&words)])
            }
            Plan::Column { .. } => {
                let elements = qr.batch * qr.rows * (qr.cols + qr.q_cols());
                let work = self.alloc(elements * qr.dtype.size())?;
                self.launch(&spec, qr.batch, &[a, q, r, Arg::Buffer(&work), Arg::Params(&words)])
            }
        }
    }
}

/// The specialisations that plans choose, over sizes on both sides of every threshold.
pub(crate) fn units() -> Vec<Unit> {
    let metal = Caps { kind: "mps", threadgroup_bytes: 32768, units: 8, float64: false };
    let cuda = Caps { kind: "cuda", threadgroup_bytes: 49152, units: 132, float64: true };
    let sizes = [1, 8, 9, 16, 17, 32, 33, 48, 64, 65, 128, 129, 256, 512, 2048];
    let mut units: Vec<Unit> = Vec::new();
    for (caps, dtype) in [(&metal, DType::F32), (&cuda, DType::F32), (&cuda, DType::F64)] {
        for (rows, cols) in sizes.iter().flat_map(|rows| sizes.map(|cols| (*rows, cols))) {
            let qr = Qr { batch: 1, rows, cols, mode: Mode::Reduced, dtype };
            let Ok(plan) = Plan::new(&qr, caps) else { continue };
            let spec = plan.spec(dtype);
            if units.iter().all(|unit| *unit.spec() != spec) {
                units.push(if caps.kind == "mps" { Unit::everywhere(spec) } else { Unit::cuda(spec) });
            }
        }
    }
    units
}
