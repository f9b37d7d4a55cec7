//! GPU form of solve: which kernels, which specialisations, how many groups.

use super::{Factor, FactorArgs, Keep, OP, Right, Solve, SolveArgs, Substitute, SubstituteArgs, System};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of a call whose matrices are in registers; whether B is the identity and whether the factors are stored.
    TileSizes as "lu_tile_params" { batch: u32, rows: u32, cols: u32, sides: u32, identity: u32, keep: u32 }
}
params! {
    /// Sizes of matrices, the first row and column of a panel, its columns, pivots of a matrix, blocks of an update.
    PanelSizes as "lu_panel_params" {
        rows: u32, cols: u32, first: u32, width: u32, steps: u32, col_blocks: u32, row_blocks: u32,
    }
}
params! {
    /// Sizes of a substitution, and groups that share the right sides of a matrix.
    SubstituteSizes as "lu_substitute_params" { n: u32, sides: u32, chunks: u32, transposed: u32, identity: u32 }
}

static TILE: Source = Source {
    file: "solve/tile.metal",
    body: concat!(include_str!("pivot.metal"), include_str!("tile.metal")),
    declarations: &[TileSizes::DECLARATION],
};
static PANEL: Source = Source {
    file: "solve/panel.metal",
    body: concat!(include_str!("pivot.metal"), include_str!("panel.metal")),
    declarations: &[PanelSizes::DECLARATION],
};
static UPDATE: Source =
    Source { file: "solve/update.metal", body: include_str!("update.metal"), declarations: &[PanelSizes::DECLARATION] };
static SUBSTITUTE: Source = Source {
    file: "solve/substitute.metal",
    body: include_str!("substitute.metal"),
    declarations: &[SubstituteSizes::DECLARATION],
};

/// How matrices lie in registers: rows per lane, simd groups per matrix, columns of A and of B per simd group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    rows: u32,
    groups: u32,
    cols: u32,
    sides: u32,
}

/// The first with room is taken.
const TILES: [Tile; 7] = [
    Tile { rows: 1, groups: 1, cols: 16, sides: 8 },
    Tile { rows: 1, groups: 1, cols: 16, sides: 16 },
    Tile { rows: 1, groups: 1, cols: 32, sides: 8 },
    Tile { rows: 1, groups: 1, cols: 32, sides: 32 },
    Tile { rows: 2, groups: 4, cols: 16, sides: 2 },
    Tile { rows: 2, groups: 4, cols: 16, sides: 16 },
    Tile { rows: 4, groups: 16, cols: 8, sides: 1 },
];
/// Rows per lane and simd groups of panels: as many threads as there are registers for.
const PANELS: [(u32, u32); 3] = [(8, 16), (16, 16), (32, 8)];
const PANELS_F64: [(u32, u32); 2] = [(8, 16), (16, 8)];
/// Columns of a panel.
const PANEL_COLS: usize = 32;
/// Rows that a group of `lu_update` takes.
const UPDATE_ROWS: usize = 128;
/// Right sides that a group of `lu_substitute` takes.
const SUBSTITUTE_SIDES: usize = 8;

impl Tile {
    fn of(rows: usize, cols: usize, sides: usize, dtype: DType) -> Option<Tile> {
        TILES.into_iter().find(|tile| {
            // A and B of float64 that fit beside each other in 255 registers of a thread.
            let fits = dtype != DType::F64 || tile.rows * (tile.cols + tile.sides) <= 64;
            rows <= (32 * tile.rows) as usize
                && cols <= (tile.groups * tile.cols) as usize
                && sides <= (tile.groups * tile.sides) as usize
                && fits
        })
    }

    /// Matrices of a threadgroup.
    fn matrices(&self) -> u32 {
        4 / self.groups.min(4)
    }

    fn spec(&self, dtype: DType) -> Spec {
        Spec {
            source: &TILE,
            entry: "lu_tile",
            threads: 32 * self.groups * self.matrices(),
            defines: smallvec![
                float64(dtype),
                Number("LU_R", self.rows),
                Number("LU_W", self.groups),
                Number("LU_COLS", self.cols),
                Number("LU_SIDES", self.sides),
                Number("LU_MATS", self.matrices()),
            ],
        }
    }
}

use Define::Number;

fn float64(dtype: DType) -> Define {
    Number("GK_F64", u32::from(dtype == DType::F64))
}

/// For a panel that has this many rows left.
fn panel_spec(rows: usize, dtype: DType) -> Option<Spec> {
    let panels = if dtype == DType::F64 { &PANELS_F64[..] } else { &PANELS };
    let (per_lane, groups) = *panels.iter().find(|(per_lane, _)| rows <= (32 * per_lane) as usize)?;
    Some(Spec {
        source: &PANEL,
        entry: "lu_panel",
        threads: 32 * groups,
        defines: smallvec![float64(dtype), Number("LU_R", per_lane), Number("LU_W", groups)],
    })
}

fn update_spec(dtype: DType) -> Spec {
    Spec { source: &UPDATE, entry: "lu_update", threads: 256, defines: smallvec![float64(dtype)] }
}

fn substitute_spec(dtype: DType) -> Spec {
    Spec { source: &SUBSTITUTE, entry: "lu_substitute", threads: 256, defines: smallvec![float64(dtype)] }
}

impl<D: Gpu> Run<Factor> for D {
    fn run(&self, factor: &Factor, args: FactorArgs<'_, D::Buffer>) -> Result<()> {
        let FactorArgs { a, lu, pivots, info } = args;
        let Factor { batch, rows, cols, dtype } = *factor;
        match Tile::of(rows, cols, 0, dtype) {
            _ if batch == 0 => Ok(()),
            Some(tile) => {
                let sizes = TileSizes {
                    batch: batch as u32,
                    rows: rows as u32,
                    cols: cols as u32,
                    sides: 0,
                    identity: 0,
                    keep: 1,
                };
                // Without right sides nothing is read from B or written to X.
                tile_launch(self, tile, dtype, sizes, [a, a, &self.alloc(0)?, lu, pivots, info])
            }
            None => blocked(self, factor, FactorArgs { a, lu, pivots, info }),
        }
    }
}

fn tile_launch<D: Gpu>(
    device: &D,
    tile: Tile,
    dtype: DType,
    sizes: TileSizes,
    [a, b, x, lu, pivots, info]: [&D::Buffer; 6],
) -> Result<()> {
    let list = [a, b, x, lu, pivots, info].map(Arg::Buffer);
    let words = sizes.words();
    let list = list.into_iter().chain([Arg::Params(&words)]).collect::<Vec<_>>();
    device.launch(&tile.spec(dtype), (sizes.batch as usize).div_ceil(tile.matrices() as usize), &list)
}

/// Panel after panel, from one buffer to another and back; the last one is `lu`.
fn blocked<D: Gpu>(device: &D, factor: &Factor, args: FactorArgs<'_, D::Buffer>) -> Result<()> {
    let Factor { batch, rows, cols, dtype } = *factor;
    let FactorArgs { a, lu, pivots, info } = args;
    let steps = factor.steps();
    let panels = steps.div_ceil(PANEL_COLS);
    let work = device.alloc(batch * rows * cols * dtype.size())?;
    let order = device.alloc(4 * batch * rows)?;
    for panel in 0..panels {
        let first = panel * PANEL_COLS;
        let spec = panel_spec(rows - first, dtype).ok_or_else(|| Error::Unsupported {
            op: OP,
            reason: format!("{rows} rows of {dtype} on {}: more than a threadgroup holds", device.caps().kind),
        })?;
        let sizes = PanelSizes {
            rows: rows as u32,
            cols: cols as u32,
            first: first as u32,
            width: (steps - first).min(PANEL_COLS) as u32,
            steps: steps as u32,
            col_blocks: cols.div_ceil(32) as u32,
            row_blocks: rows.div_ceil(UPDATE_ROWS) as u32,
        };
        let words = sizes.words();
        let [before, after] = if (panels - panel) % 2 == 1 { [&work, lu] } else { [lu, &work] };
        let from = if panel == 0 { a } else { before };
        let list = [from, after, pivots, info, &order].map(Arg::Buffer);
        let list = list.into_iter().chain([Arg::Params(&words)]).collect::<Vec<_>>();
        device.launch(&spec, batch, &list)?;
        let groups = batch * (sizes.col_blocks * sizes.row_blocks) as usize;
        let list = [Arg::Buffer(from), Arg::Buffer(after), Arg::Buffer(&order), Arg::Params(&words)];
        device.launch(&update_spec(dtype), groups, &list)?;
    }
    Ok(())
}

impl<D: Gpu> Run<Solve> for D {
    fn run(&self, solve: &Solve, args: SolveArgs<'_, D::Buffer>) -> Result<()> {
        let Solve { batch, n, k, right, keep, dtype } = *solve;
        let SolveArgs { a, b, x, lu, pivots, info } = args;
        if batch == 0 {
            return Ok(());
        }
        if let Some(tile) = Tile::of(n, n, k, dtype) {
            let sizes = TileSizes {
                batch: batch as u32,
                rows: n as u32,
                cols: n as u32,
                sides: k as u32,
                identity: u32::from(right == Right::Identity),
                keep: u32::from(keep == Keep::Factors),
            };
            return tile_launch(self, tile, dtype, sizes, [a, b, x, lu, pivots, info]);
        }
        let factors;
        let (lu, pivots) = match keep {
            Keep::Factors => (lu, pivots),
            Keep::Nothing => {
                factors = (self.alloc(batch * n * n * dtype.size())?, self.alloc(4 * batch * n)?);
                (&factors.0, &factors.1)
            }
        };
        self.run(&solve.factor(), FactorArgs { a, lu, pivots, info })?;
        substitute(self, &solve.substitute(), [lu, pivots, b, x], right)
    }
}

impl<D: Gpu> Run<Substitute> for D {
    fn run(&self, problem: &Substitute, args: SubstituteArgs<'_, D::Buffer>) -> Result<()> {
        let SubstituteArgs { lu, pivots, b, x } = args;
        substitute(self, problem, [lu, pivots, b, x], Right::Given)
    }
}

fn substitute<D: Gpu>(device: &D, problem: &Substitute, buffers: [&D::Buffer; 4], right: Right) -> Result<()> {
    let Substitute { batch, n, k, system, dtype } = *problem;
    if batch * n * k == 0 {
        return Ok(());
    }
    let chunks = k.div_ceil(SUBSTITUTE_SIDES);
    let sizes = SubstituteSizes {
        n: n as u32,
        sides: k as u32,
        chunks: chunks as u32,
        transposed: u32::from(system == System::Transposed),
        identity: u32::from(right == Right::Identity),
    };
    let [lu, pivots, b, x] = buffers.map(Arg::Buffer);
    device.launch(&substitute_spec(dtype), batch * chunks, &[lu, pivots, b, x, Arg::Params(&sizes.words())])
}

/// The specialisations that plans choose.
pub(crate) fn units() -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for dtype in [DType::F32, DType::F64] {
        let tiles = TILES.iter().filter_map(|tile| {
            let [rows, cols, sides] =
                [32 * tile.rows, tile.groups * tile.cols, tile.groups * tile.sides].map(|size| size as usize);
            Some(Tile::of(rows.min(cols), cols, sides, dtype)?.spec(dtype))
        });
        let panels = [256, 512, 1024].into_iter().filter_map(|rows| panel_spec(rows, dtype));
        for spec in tiles.chain(panels).chain([update_spec(dtype), substitute_spec(dtype)]) {
            if units.iter().all(|unit| *unit.spec() != spec) {
                units.push(Unit::everywhere(spec));
            }
        }
    }
    units
}
