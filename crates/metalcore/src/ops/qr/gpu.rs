//! GPU form of qr: which kernel, which specialisation, how many groups.

use super::{Args, Mode, OP, Qr};
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::device::{Caps, Run};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one panel and of what comes after it: its first row and column, whether the panel is the last, groups that
    /// share the columns to update.
    BlockedSizes as "qr_blocked_params" {
        rows: u32, cols: u32, q_cols: u32, r_rows: u32, panels: u32, first: u32, width: u32, last: u32, blocks: u32,
    }
}
params! {
    /// Sizes of one call.
    Sizes as "qr_params" { batch: u32, rows: u32, cols: u32, rank: u32, q_cols: u32, r_rows: u32 }
}

static TILE: Source = Source {
    file: "qr/tile.metal",
    body: concat!(include_str!("reflector.metal"), include_str!("tile.metal")),
    declarations: &[Sizes::DECLARATION],
};
static PANEL: Source = Source {
    file: "qr/panel.metal",
    body: concat!(include_str!("blocked.metal"), include_str!("reflector.metal"), include_str!("panel.metal")),
    declarations: &[BlockedSizes::DECLARATION],
};
static UPDATE: Source = Source {
    file: "qr/update.metal",
    body: concat!(include_str!("blocked.metal"), include_str!("update.metal")),
    declarations: &[BlockedSizes::DECLARATION],
};

/// How a call is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// A matrix in registers.
    Tile { rows_per_thread: u32, lanes: u32, cols: u32, mats: u32, keep: bool },
    /// A panel of this many columns in registers, the rest in device memory.
    Blocked { cols: u32 },
}

/// Rows per thread and threads per column, by what they hold: the first that fits is taken.
const TILES: [(u32, u32); 11] =
    [(8, 1), (8, 2), (8, 4), (12, 4), (16, 4), (32, 2), (16, 8), (32, 4), (16, 16), (32, 8), (16, 32)];
/// The same for a panel.
const PANELS: [(u32, u32); 8] = [(8, 8), (16, 8), (16, 16), (16, 32), (32, 32), (48, 32), (64, 32), (96, 32)];
/// Columns of a panel: the first with room for the rows is taken.
const PANEL_COLS: [u32; 3] = [32, 16, 8];
/// Columns that a group of `qr_update` takes.
const UPDATE_COLS: usize = 16;

/// Rows per thread and threads per column of a panel, if it fits.
fn panel(cols: u32, rows: usize, dtype: DType) -> Option<(u32, u32)> {
    let wide = if dtype == DType::F64 { 2 } else { 1 };
    PANELS.into_iter().find(|(r, lanes)| rows <= (r * lanes) as usize).filter(|(r, lanes)| {
        // a and v in registers, of 65536 for a threadgroup and 255 for a thread
        let each = (2 * r + 24) * wide;
        lanes * cols * each <= 65536 && each <= 240
    })
}

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
        let blocked = PANEL_COLS.into_iter().find(|cols| panel(*cols, qr.rows, qr.dtype).is_some());
        blocked.map(|cols| Plan::Blocked { cols }).ok_or_else(|| Error::Unsupported {
            op: OP,
            reason: format!("{} rows of {} on {}: more than a threadgroup holds", qr.rows, qr.dtype, caps.kind),
        })
    }
}

use Define::Number;

fn float64(dtype: DType) -> Define {
    Number("GK_F64", u32::from(dtype == DType::F64))
}

fn tile_spec(rows_per_thread: u32, lanes: u32, cols: u32, mats: u32, keep: bool, dtype: DType) -> Spec {
    Spec {
        source: &TILE,
        entry: "qr_tile",
        threads: lanes * cols * mats,
        defines: smallvec![
            float64(dtype),
            Number("QR_R", rows_per_thread),
            Number("QR_LANES", lanes),
            Number("QR_COLS", cols),
            Number("QR_MATS", mats),
            Number("QR_KEEP", u32::from(keep)),
        ],
    }
}

/// For a panel that has this many rows left.
fn panel_spec(cols: u32, rows: usize, dtype: DType) -> Spec {
    let (r, lanes) = panel(cols, rows, dtype).expect("the plan has room for all rows");
    Spec {
        source: &PANEL,
        entry: "qr_panel",
        threads: lanes * cols,
        defines: smallvec![float64(dtype), Number("QR_R", r), Number("QR_LANES", lanes), Number("QR_COLS", cols)],
    }
}

fn update_spec(cols: u32, form_q: bool, dtype: DType) -> Spec {
    let defines = smallvec![float64(dtype), Number("QR_COLS", cols), Number("QR_FORM_Q", u32::from(form_q))];
    Spec { source: &UPDATE, entry: "qr_update", threads: 256, defines }
}

/// Whether a vendor's QR that takes one matrix after the other (cuSOLVER through torch) is faster than ours: for few
/// matrices of many rows. Against torch on an H200 one matrix of 512 x 512 takes half the time (0.92 of 1.86 ms), 1000 x
/// 200 as long (1.02 of 0.95), 3000 x 100 the time of 4.5 (2.65 of 0.59); ten take hardly longer than one.
pub fn vendor_is_faster(qr: &Qr, caps: &Caps) -> bool {
    let least = match qr.rows {
        0..=512 => 1,
        513..=1024 => 2,
        _ => 6,
    };
    match Plan::new(qr, caps) {
        Ok(Plan::Tile { .. }) => false,
        Ok(Plan::Blocked { .. }) => qr.batch < least,
        Err(_) => true,
    }
}

impl<D: Gpu> Run<Qr> for D {
    fn run(&self, qr: &Qr, args: Args<'_, Self::Buffer>) -> Result<()> {
        if qr.batch == 0 || qr.rows * (qr.cols + qr.q_cols()) + qr.r_rows() * qr.cols == 0 {
            return Ok(());
        }
        match Plan::new(qr, self.caps())? {
            Plan::Tile { rows_per_thread, lanes, cols, mats, keep } => {
                let sizes = Sizes {
                    batch: qr.batch as u32,
                    rows: qr.rows as u32,
                    cols: qr.cols as u32,
                    rank: qr.rank() as u32,
                    q_cols: qr.q_cols() as u32,
                    r_rows: qr.r_rows() as u32,
                };
                let [a, q, r] = [args.a, args.q, args.r].map(Arg::Buffer);
                let spec = tile_spec(rows_per_thread, lanes, cols, mats, keep, qr.dtype);
                self.launch(&spec, qr.batch.div_ceil(mats as usize), &[a, q, r, Arg::Params(&sizes.words())])
            }
            Plan::Blocked { cols } => blocked(self, qr, args, cols),
        }
    }
}

/// Panel after panel, then Q from the last panel to the first: three launches for each.
fn blocked<D: Gpu>(device: &D, qr: &Qr, args: Args<'_, D::Buffer>, panel_cols: u32) -> Result<()> {
    let step = panel_cols as usize;
    let panels = qr.rank().div_ceil(step).max(1); // one without columns makes Q = I
    let alloc = |elements: usize| device.alloc(qr.batch * elements * qr.dtype.size());
    let (work, v) = (alloc(qr.rows * qr.cols)?, alloc(panels * qr.rows * step)?);
    let gram = alloc(panels * step * step)?;
    let [a, q, r, work, v, gram] = [args.a, args.q, args.r, &work, &v, &gram];
    let sizes = |panel: usize, columns: usize| BlockedSizes {
        rows: qr.rows as u32,
        cols: qr.cols as u32,
        q_cols: qr.q_cols() as u32,
        r_rows: qr.r_rows() as u32,
        panels: panels as u32,
        first: (panel * step) as u32,
        width: (qr.rank() - panel * step).min(step) as u32,
        last: u32::from(panel + 1 == panels),
        blocks: columns.div_ceil(UPDATE_COLS) as u32,
    };
    for panel in 0..panels {
        let first = panel * step;
        let after = qr.cols - (first + step).min(qr.rank());
        let sizes = sizes(panel, after);
        let words = sizes.words();
        let list = [a, work, v, gram, r].map(Arg::Buffer);
        let list = list.into_iter().chain([Arg::Params(&words)]).collect::<Vec<_>>();
        device.launch(&panel_spec(panel_cols, qr.rows - first, qr.dtype), qr.batch, &list)?;
        if after > 0 {
            let list = [v, gram, a, work, r].map(Arg::Buffer);
            let list = list.into_iter().chain([Arg::Params(&words)]).collect::<Vec<_>>();
            device.launch(&update_spec(panel_cols, false, qr.dtype), qr.batch * sizes.blocks as usize, &list)?;
        }
    }
    if qr.q_cols() == 0 {
        return Ok(());
    }
    for panel in (0..panels).rev() {
        let sizes = sizes(panel, qr.q_cols() - panel * step);
        let list = [Arg::Buffer(v), Arg::Buffer(gram), Arg::Buffer(q), Arg::Params(&sizes.words())];
        device.launch(&update_spec(panel_cols, true, qr.dtype), qr.batch * sizes.blocks as usize, &list)?;
    }
    Ok(())
}

/// The specialisations that plans choose, over sizes on both sides of every threshold.
pub(crate) fn units() -> Vec<Unit> {
    let metal = Caps { kind: "mps", threadgroup_bytes: 32768, units: 8, float64: false };
    let cuda = Caps { kind: "cuda", threadgroup_bytes: 49152, units: 132, float64: true };
    let sizes = [1, 8, 9, 16, 17, 32, 33, 48, 64, 65, 128, 129, 256, 257, 512, 513, 1024, 1025, 2048, 3072];
    let mut units: Vec<Unit> = Vec::new();
    for (caps, dtype) in [(&metal, DType::F32), (&cuda, DType::F32), (&cuda, DType::F64)] {
        for (rows, cols) in sizes.iter().flat_map(|rows| sizes.map(|cols| (*rows, cols))) {
            let qr = Qr { batch: 1, rows, cols, mode: Mode::Reduced, dtype };
            let specs = match Plan::new(&qr, caps) {
                Ok(Plan::Tile { rows_per_thread, lanes, cols, mats, keep }) => {
                    vec![tile_spec(rows_per_thread, lanes, cols, mats, keep, dtype)]
                }
                Ok(Plan::Blocked { cols }) => {
                    let panels = sizes.iter().filter(|left| **left <= rows).map(|left| panel_spec(cols, *left, dtype));
                    panels.chain([false, true].map(|form_q| update_spec(cols, form_q, dtype))).collect()
                }
                Err(_) => continue,
            };
            for spec in specs {
                if units.iter().all(|unit| *unit.spec() != spec) {
                    units.push(if caps.kind == "mps" { Unit::everywhere(spec) } else { Unit::cuda(spec) });
                }
            }
        }
    }
    units
}
