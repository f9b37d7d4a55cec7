//! GPU form of rope: which specialisation, how many groups.

use super::{Args, Direction, Heads, Layout, Rope};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one call. A thread has one of `items`: a position and `ROPE_VEC` places of both halves of a head.
    Sizes as "rope_params" {
        items: u32, blocks: u32, lanes: u32, seq: u32, width: u32, half_width: u32, heads_first: u32,
        heads_per_thread: u32, q_chunks: u32, q_heads: u32, k_heads: u32,
        q_batch: u32, q_batch_high: u32, q_position: u32, q_head: u32,
        k_batch: u32, k_batch_high: u32, k_position: u32, k_head: u32,
        table_batch: u32, table_width: u32, positions: u32, ids_batch: u32,
    }
}

static SOURCE: Source =
    Source { file: "rope/kernel.metal", body: include_str!("kernel.metal"), declarations: &[Sizes::DECLARATION] };

/// Threads of a group (`ROPE_THREADS`).
const THREADS: usize = 256;
/// Heads that a thread loads at once (`ROPE_HEADS`).
const HEADS: usize = 4;

/// `aligned`: every tensor starts at a multiple of 16 bytes.
fn vec(problem: &Rope, aligned: bool) -> usize {
    let widest = if problem.dtype.size() == 2 { 8 } else { 4 };
    let fits = |vec: usize| {
        let strides = [Some(problem.q), problem.k]
            .into_iter()
            .flatten()
            .flat_map(|heads| [heads.strides.batch, heads.strides.position, heads.strides.head]);
        aligned && strides.chain([problem.width / 2]).all(|stride| stride.is_multiple_of(vec))
    };
    [widest, 4].into_iter().find(|vec| fits(*vec)).unwrap_or(1)
}

fn spec(problem: &Rope, vec: usize) -> Spec {
    use Define::{Number, Word};
    Spec {
        source: &SOURCE,
        entry: if problem.k.is_some() { "rope_qk" } else { "rope_x" },
        threads: THREADS as u32,
        defines: smallvec![
            Number("GK_F64", u32::from(problem.dtype == DType::F64)),
            Word("ROPE_T", problem.dtype.kernel_word()),
            Word("ROPE_W", problem.table.dtype.kernel_word()),
            Number("ROPE_VEC", vec as u32),
            Number("ROPE_FULL", u32::from(problem.table.full)),
            Number("ROPE_IDS", problem.ids.map_or(0, |ids| ids.bytes as u32 / 4)),
            Number("ROPE_BACK", u32::from(problem.direction == Direction::Backward)),
            Number("ROPE_K", u32::from(problem.k.is_some())),
        ],
    }
}

/// A size as a word of the parameter block.
fn word(size: usize) -> Result<u32> {
    u32::try_from(size)
        .map_err(|_| Error::Unsupported { op: "rope", reason: format!("a size of {size} elements: more than 2^32") })
}

impl<D: Gpu> Run<Rope> for D {
    fn run(&self, problem: &Rope, args: Args<'_, Self::Buffer>) -> Result<()> {
        let Rope { batch, seq, width, q, k, table, .. } = *problem;
        let none = Heads { count: 0, strides: q.strides };
        let k = k.unwrap_or(none);
        if batch * seq * width == 0 || q.count + k.count == 0 {
            return Ok(());
        }
        let tensors = [Some(args.q), args.k, Some(args.cos), Some(args.sin), Some(args.q_out), args.k_out];
        let vec = vec(problem, tensors.into_iter().flatten().all(|tensor| self.aligned(tensor, 16)));
        let lanes = width / 2 / vec;
        let items = batch * seq * lanes;
        // More heads for a thread mean fewer reads of the tables from the L2 cache, but also fewer threads.
        let threads = items * (q.count + k.count).div_ceil(2 * HEADS);
        let heads_per_thread = if threads >= self.caps().units * 4096 { 2 * HEADS } else { HEADS };
        let (q_chunks, k_chunks) = (q.count.div_ceil(heads_per_thread), k.count.div_ceil(heads_per_thread));
        let blocks = items.div_ceil(THREADS);
        let batched = |batched, size| if batched { word(size) } else { Ok(0) };
        let sizes = Sizes {
            items: word(items)?,
            blocks: word(blocks)?,
            lanes: word(lanes)?,
            seq: word(seq)?,
            width: word(width)?,
            half_width: word(width / 2)?,
            heads_first: u32::from(problem.layout == Layout::HeadsFirst),
            heads_per_thread: heads_per_thread as u32,
            q_chunks: word(q_chunks)?,
            q_heads: word(q.count)?,
            k_heads: word(k.count)?,
            q_batch: q.strides.batch as u32,
            q_batch_high: (q.strides.batch >> 32) as u32,
            q_position: word(q.strides.position)?,
            q_head: word(q.strides.head)?,
            k_batch: k.strides.batch as u32,
            k_batch_high: (k.strides.batch >> 32) as u32,
            k_position: word(k.strides.position)?,
            k_head: word(k.strides.head)?,
            table_batch: batched(table.batched, table.positions)?,
            table_width: word(problem.table_width())?,
            positions: word(table.positions)?,
            ids_batch: batched(problem.ids.is_some_and(|ids| ids.batched), seq)?,
        };
        word(seq * width)?;
        word(q.count.max(k.count) * width)?;
        let words = sizes.words();
        let ids = args.position_ids.unwrap_or(args.cos);
        let buffers = [Some(args.q), args.k, Some(args.cos), Some(args.sin), Some(ids), Some(args.q_out), args.k_out];
        let mut list: Vec<_> = buffers.into_iter().flatten().map(Arg::Buffer).collect();
        list.push(Arg::Params(&words));
        self.launch(&spec(problem, vec), blocks * (q_chunks + k_chunks), &list)
    }
}

/// The specialisations: types, vectors, tables, positions, directions.
pub(crate) fn units() -> Vec<Unit> {
    use super::{Ids, Strides, Table};
    use DType::{BF16, F16, F32, F64};
    let strides = Strides { batch: 0, position: 0, head: 0 };
    let mut units = Vec::new();
    for (dtype, table) in [(F32, F32), (F16, F16), (BF16, BF16), (BF16, F32), (F16, F32), (F64, F64)] {
        // Every width of two types; of the others, what differs by type.
        let widths: &[usize] = if dtype == table && matches!(dtype, F32 | BF16) { &[128, 8, 6] } else { &[128] };
        for &width in widths {
            for full in [false, true] {
                for (bytes, direction, k) in [
                    (0, Direction::Forward, true),
                    (0, Direction::Backward, true),
                    (0, Direction::Forward, false),
                    (8, Direction::Forward, true),
                    (4, Direction::Backward, false),
                ] {
                    let problem = Rope {
                        batch: 1,
                        seq: 1,
                        width,
                        layout: Layout::HeadsFirst,
                        q: Heads { count: 1, strides },
                        k: k.then_some(Heads { count: 1, strides }),
                        dtype,
                        table: Table { dtype: table, positions: 1, full, batched: false },
                        ids: (bytes > 0).then_some(Ids { bytes, batched: false }),
                        direction,
                    };
                    let unit = spec(&problem, vec(&problem, true));
                    if !units.contains(&unit) {
                        units.push(unit);
                    }
                }
            }
        }
    }
    units.into_iter().map(Unit::everywhere).collect()
}
