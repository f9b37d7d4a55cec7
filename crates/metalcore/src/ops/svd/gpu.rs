//! GPU form of svd: a matrix in registers, or pairs of blocks of columns.

use super::{Args, MOST_ROWS, OP, Svd};
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::device::{Caps, Run};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one call in registers.
    TileSizes as "svd_tile_params" {
        batch: u32, rows: u32, cols: u32, row_stride: u32, col_stride: u32, swap: u32, vectors: u32, most_sweeps: u32,
    }
}
params! {
    /// Sizes of one round of one sweep over blocks of columns.
    BlockSizes as "svd_block_params" {
        rows: u32, cols: u32, width: u32, blocks: u32, row_stride: u32, col_stride: u32, swap: u32, vectors: u32,
        sweep: u32, round: u32, most_sweeps: u32,
    }
}

static TILE: Source = Source {
    file: "svd/tile.metal",
    body: concat!(
        include_str!("scale.metal"),
        include_str!("../../device/gpu/prelude/rotation.h"),
        include_str!("jacobi.metal"),
        include_str!("tile.metal")
    ),
    declarations: &[TileSizes::DECLARATION],
};
static BLOCK: Source = Source {
    file: "svd/block.metal",
    body: concat!(
        include_str!("scale.metal"),
        include_str!("../../device/gpu/prelude/rotation.h"),
        include_str!("jacobi.metal"),
        include_str!("block.metal")
    ),
    declarations: &[BlockSizes::DECLARATION],
};
static PACK: Source = Source {
    file: "svd/pack.metal",
    body: concat!(include_str!("scale.metal"), include_str!("pack.metal")),
    declarations: &[BlockSizes::DECLARATION],
};
static FINISH: Source = Source {
    file: "svd/finish.metal",
    body: concat!(include_str!("scale.metal"), include_str!("finish.metal")),
    declarations: &[BlockSizes::DECLARATION],
};

/// How columns are shared among threads: see `jacobi.metal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    pairs: u32,
    chunks: u32,
    rows: u32,
    mats: u32,
}

const fn layout(pairs: u32, chunks: u32, rows: u32, mats: u32) -> Layout {
    Layout { pairs, chunks, rows, mats }
}

/// The first with room for all rows is taken. The last needs 32 registers a thread for data alone: none for float64.
const TILES: [Layout; 5] =
    [layout(4, 2, 4, 4), layout(8, 4, 4, 1), layout(16, 4, 8, 1), layout(32, 8, 8, 1), layout(64, 16, 8, 1)];
const BLOCKS: [Layout; 2] = [layout(16, 32, 8, 1), layout(16, 64, 8, 1)];
const BLOCKS_F64: [Layout; 2] = [layout(16, 32, 8, 1), layout(8, 64, 8, 1)];
/// Sweeps over a matrix in registers before it is given up: it stops when all columns are orthogonal.
const MOST_SWEEPS: u32 = 60;
/// Sweeps over blocks that are launched; those that find nothing to do return at once.
const MOST_BLOCK_SWEEPS: u32 = 40;

impl Layout {
    fn holds(&self, rows: usize) -> bool {
        rows <= (self.chunks * self.rows) as usize
    }
    fn spec(self, source: &'static Source, entry: &'static str, dtype: DType) -> Spec {
        Spec {
            source,
            entry,
            threads: self.pairs * self.chunks * self.mats,
            defines: smallvec![
                float64(dtype),
                Define::Number("SVD_PAIRS", self.pairs),
                Define::Number("SVD_CHUNKS", self.chunks),
                Define::Number("SVD_R", self.rows),
                Define::Number("SVD_MATS", self.mats),
            ],
        }
    }
}

/// How a call is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// A matrix in registers.
    Tile(Layout),
    /// By blocks of columns, in device memory between rounds.
    Blocks(Layout),
}

impl Plan {
    fn new(svd: &Svd, caps: &Caps) -> Result<Plan> {
        let wide = svd.dtype == DType::F64;
        let tiles = if wide { &TILES[..4] } else { &TILES[..] };
        if let Some(tile) = tiles.iter().find(|tile| tile.holds(svd.long())) {
            return Ok(Plan::Tile(*tile));
        }
        let blocks = if wide { &BLOCKS_F64 } else { &BLOCKS };
        blocks.iter().find(|block| block.holds(svd.long())).map(|block| Plan::Blocks(*block)).ok_or_else(|| {
            let reason = format!("{} x {} on {}: more than {MOST_ROWS} rows or columns", svd.rows, svd.cols, caps.kind);
            Error::Unsupported { op: OP, reason }
        })
    }
}

fn float64(dtype: DType) -> Define {
    Define::Number("GK_F64", u32::from(dtype == DType::F64))
}

fn single_spec(source: &'static Source, entry: &'static str, dtype: DType) -> Spec {
    Spec { source, entry, threads: 1024, defines: smallvec![float64(dtype)] }
}

impl<D: Gpu> Run<Svd> for D {
    fn run(&self, svd: &Svd, args: Args<'_, Self::Buffer>) -> Result<()> {
        if svd.batch == 0 || svd.short() == 0 {
            return Ok(());
        }
        // The long side are the rows; U and V change places.
        let swap = svd.rows < svd.cols;
        let (u, v) = if swap { (args.v, args.u) } else { (args.u, args.v) };
        let (row_stride, col_stride) = if swap { (1, svd.cols as u32) } else { (svd.cols as u32, 1) };
        let (rows, cols) = (svd.long() as u32, svd.short() as u32);
        let (swap, vectors) = (u32::from(swap), u32::from(svd.vectors));
        match Plan::new(svd, self.caps())? {
            Plan::Tile(tile) => {
                let batch = svd.batch as u32;
                let most_sweeps = MOST_SWEEPS;
                let sizes = TileSizes { batch, rows, cols, row_stride, col_stride, swap, vectors, most_sweeps };
                let [a, u, s, v, info] = [args.a, u, args.s, v, args.info].map(Arg::Buffer);
                let spec = tile.spec(&TILE, "svd_tile", svd.dtype);
                let groups = svd.batch.div_ceil(tile.mats as usize);
                self.launch(&spec, groups, &[a, u, s, v, info, Arg::Params(&sizes.words())])
            }
            Plan::Blocks(layout) => {
                let blocks = cols.div_ceil(layout.pairs).next_multiple_of(2);
                let width = blocks * layout.pairs;
                let most_sweeps = MOST_BLOCK_SWEEPS;
                let (sweep, round) = (0, 0);
                let sizes = BlockSizes {
                    rows,
                    cols,
                    width,
                    blocks,
                    row_stride,
                    col_stride,
                    swap,
                    vectors,
                    sweep,
                    round,
                    most_sweeps,
                };
                by_blocks(self, svd, Args { u, v, ..args }, layout, sizes)
            }
        }
    }
}

/// Sweep after sweep: a launch for each round of blocks.
fn by_blocks<D: Gpu>(
    device: &D,
    svd: &Svd,
    args: Args<'_, D::Buffer>,
    layout: Layout,
    mut sizes: BlockSizes,
) -> Result<()> {
    let size = svd.dtype.size();
    let width = sizes.width as usize;
    let w = device.alloc(svd.batch * svd.long() * width * size)?;
    let x = device.alloc(if svd.vectors { svd.batch * svd.short() * width * size } else { size })?;
    let (ids, scales) = (device.alloc(svd.batch * width * size)?, device.alloc(svd.batch * 3 * size)?);
    let flags = device.alloc(svd.batch * (sizes.most_sweeps as usize + 1) * 4)?;
    let words = sizes.words();
    let list = [args.a, &w, &x, &ids, &scales, &flags].map(Arg::Buffer).into_iter();
    let list: Vec<_> = list.chain([Arg::Params(&words)]).collect();
    device.launch(&single_spec(&PACK, "svd_pack", svd.dtype), svd.batch, &list)?;
    let spec = layout.spec(&BLOCK, "svd_block", svd.dtype);
    for sweep in 0..sizes.most_sweeps {
        for round in 0..sizes.blocks - 1 {
            (sizes.sweep, sizes.round) = (sweep, round);
            let [w, x, ids, flags] = [&w, &x, &ids, &flags].map(Arg::Buffer);
            let groups = svd.batch * sizes.blocks as usize / 2;
            device.launch(&spec, groups, &[w, x, ids, flags, Arg::Params(&sizes.words())])?;
        }
    }
    let list = [&w, &x, &ids, &scales, &flags, args.u, args.s, args.v, args.info].map(Arg::Buffer).into_iter();
    let list: Vec<_> = list.chain([Arg::Params(&words)]).collect();
    device.launch(&single_spec(&FINISH, "svd_finish", svd.dtype), svd.batch, &list)
}

/// The specialisations that plans choose.
pub(crate) fn units() -> Vec<Unit> {
    let of = |dtype: DType, tiles: &[Layout], blocks: &[Layout]| -> Vec<Spec> {
        let tiles = tiles.iter().map(|tile| tile.spec(&TILE, "svd_tile", dtype));
        let blocks = blocks.iter().map(|block| block.spec(&BLOCK, "svd_block", dtype));
        let others = [single_spec(&PACK, "svd_pack", dtype), single_spec(&FINISH, "svd_finish", dtype)];
        tiles.chain(blocks).chain(others).collect()
    };
    let everywhere = of(DType::F32, &TILES, &BLOCKS).into_iter().map(Unit::everywhere);
    everywhere.chain(of(DType::F64, &TILES[..4], &BLOCKS_F64).into_iter().map(Unit::cuda)).collect()
}
