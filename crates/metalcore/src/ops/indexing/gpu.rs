//! GPU form of gather, index_select and scatter_add: words, passes, how many groups.

use super::{Dim, Gather, GatherArgs, Indexing, ScatterAdd, ScatterAddArgs};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, Index, params};
use smallvec::{SmallVec, smallvec};

params! {
    /// As [`Indexing`], a dimension in each entry of the lists.
    Sizes as "indexing_params" {
        dims: u32, wide: u32, total: u64, limit: u64, step: u64, sizes: [u64; 6], table: [u64; 6], index: [u64; 6],
        values: [u64; 6], missing: [u32; 4], copies: u32, words: u64, len: u64,
    }
}

static GATHER: Source = Source {
    file: "indexing/gather.metal",
    body: concat!(include_str!("place.metal"), include_str!("gather.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BEGIN: Source = Source {
    file: "indexing/begin.metal",
    body: concat!(include_str!("place.metal"), include_str!("begin.metal")),
    declarations: &[Sizes::DECLARATION],
};
static SCATTER_ADD: Source = Source {
    file: "indexing/scatter_add.metal",
    body: concat!(include_str!("place.metal"), include_str!("scatter_add.metal")),
    declarations: &[Sizes::DECLARATION],
};

/// INDEXING_THREADS of place.metal.
const THREADS: u32 = 256;
/// INDEXING_AHEAD of place.metal.
const AHEAD: usize = 4;
/// Bytes of the widest word.
const WORD: u32 = 16;

/// Dimensions of the kernels' parameter block.
const MOST_DIMS: usize = 6;

fn gather_spec(bytes: usize) -> Spec {
    let word = match bytes {
        1 => "uchar",
        2 => "ushort",
        4 => "uint",
        8 => "uint2",
        _ => "uint4",
    };
    let defines = smallvec![
        Define::Word("INDEXING_WORD", word),
        Define::Number("INDEXING_BYTES", bytes as u32),
        Define::Number("GK_MIN_GROUPS", 4),
    ];
    Spec { source: &GATHER, entry: "gather", threads: THREADS, defines }
}

fn begin_spec(dtype: DType) -> Spec {
    let defines = smallvec![
        Define::Number("GK_F64", u32::from(dtype == DType::F64)),
        Define::Word("SCATTER_T", dtype.kernel_word()),
        Define::Number("SCATTER_PER_WORD", WORD / dtype.size() as u32),
        Define::Number("GK_MIN_GROUPS", 4),
    ];
    Spec { source: &BEGIN, entry: "scatter_add_begin", threads: THREADS, defines }
}

fn scatter_add_spec(dtype: DType, round: bool) -> Spec {
    let (stored, sum) = (dtype.kernel_word(), dtype.compute().kernel_word());
    let (from, to) = if round { (sum, stored) } else { (stored, sum) };
    let defines = smallvec![
        Define::Number("GK_F64", u32::from(dtype == DType::F64)),
        Define::Word("SCATTER_FROM", from),
        Define::Word("SCATTER_TO", to),
        Define::Number("SCATTER_ROUND", u32::from(round)),
        Define::Number("GK_MIN_GROUPS", 4),
    ];
    Spec { source: &SCATTER_ADD, entry: "scatter_add", threads: THREADS, defines }
}

fn sizes(indexing: &Indexing) -> Result<Sizes> {
    if indexing.dims.len() > MOST_DIMS {
        let reason = format!("{} dimensions no two of which lie as one: more than {MOST_DIMS}", indexing.dims.len());
        return Err(Error::Unsupported { op: indexing.op, reason });
    }
    let list = |of: fn(&Dim) -> usize| {
        let mut list = [0; MOST_DIMS];
        list.iter_mut().zip(&indexing.dims).for_each(|(entry, dim)| *entry = of(dim) as u64);
        list
    };
    Ok(Sizes {
        dims: indexing.dims.len() as u32,
        wide: u32::from(indexing.index == Index::I64),
        total: indexing.total as u64,
        limit: indexing.limit as u64,
        step: indexing.step as u64,
        sizes: list(|dim| dim.size),
        table: list(|dim| dim.table),
        index: list(|dim| dim.index),
        values: list(|dim| dim.values),
        missing: [0; 4],
        copies: 0,
        words: 0,
        len: 0,
    })
}

/// Groups for so many elements.
fn groups(elements: usize) -> usize {
    elements.div_ceil(THREADS as usize * AHEAD)
}

/// What stands for the index as int64: the index, though it is of int32 and not read so, if it is aligned.
fn as_wide<D: Gpu>(device: &D, index: &D::Buffer, indexing: &Indexing) -> Result<D::Buffer> {
    let fits = indexing.index == Index::I64 || device.aligned(index, 8);
    if fits { Ok(index.clone()) } else { device.alloc(8) }
}

fn launch<D: Gpu>(device: &D, spec: &Spec, groups: usize, buffers: &[&D::Buffer], sizes: &Sizes) -> Result<()> {
    let words = sizes.words();
    let args: SmallVec<[Arg<'_, D::Buffer>; 8]> =
        buffers.iter().copied().map(Arg::Buffer).chain([Arg::Params(&words)]).collect();
    device.launch(spec, groups, &args)
}

impl<D: Gpu> Run<Gather> for D {
    fn run(&self, problem: &Gather, args: GatherArgs<'_, Self::Buffer>) -> Result<()> {
        let GatherArgs { src, index, out } = args;
        if problem.indexing.total == 0 {
            return Ok(());
        }
        let wide = as_wide(self, index, &problem.indexing)?;
        let take = |indexing: &Indexing, bytes| {
            let sizes = Sizes { missing: problem.missing, ..sizes(indexing)? };
            launch(self, &gather_spec(bytes), groups(indexing.total), &[src, index, &wide, out], &sizes)
        };
        let mut bytes = WORD as usize;
        while bytes > problem.bytes {
            let words = problem.indexing.in_words(bytes / problem.bytes);
            let aligned = || self.aligned(src, bytes as u64) && self.aligned(out, bytes as u64);
            if let Some(words) = words.filter(|_| aligned()) {
                return take(&words, bytes);
            }
            bytes /= 2;
        }
        take(&problem.indexing, problem.bytes)
    }
}

impl<D: Gpu> Run<ScatterAdd> for D {
    fn run(&self, problem: &ScatterAdd, args: ScatterAddArgs<'_, Self::Buffer>) -> Result<()> {
        let ScatterAddArgs { dst, index, src, out } = args;
        let ScatterAdd { indexing, dtype, len } = problem;
        if *len == 0 {
            return Ok(());
        }
        let adds = groups(indexing.total);
        let sums = if dtype.size() == 2 && adds > 0 { Some(self.alloc(len * 4)?) } else { None };
        let wide = &as_wide(self, index, indexing)?;
        let (mut sizes, mut dst_words) = (sizes(indexing)?, out);
        if let Some(dst) = dst {
            let per_word = WORD as usize / dtype.size();
            let whole = self.aligned(dst, WORD.into()) && self.aligned(out, WORD.into());
            let words = if whole { len / per_word } else { 0 };
            dst_words = if whole { dst } else { out };
            let copies = groups(if whole { words } else { *len }).max(1);
            sizes = Sizes { copies: copies as u32, words: words as u64, len: *len as u64, ..sizes };
        }
        let begun = if sums.is_some() { adds } else { 0 } + sizes.copies as usize;
        if begun > 0 {
            let (dst, sums) = (dst.unwrap_or(out), sums.as_ref().unwrap_or(out));
            launch(self, &begin_spec(*dtype), begun, &[dst, dst_words, index, wide, out, out, sums], &sizes)?;
        }
        if adds == 0 {
            return Ok(());
        }
        let pass =
            |round, from, to| launch(self, &scatter_add_spec(*dtype, round), adds, &[from, index, wide, to], &sizes);
        pass(false, src, sums.as_ref().unwrap_or(out))?;
        sums.as_ref().map_or(Ok(()), |sums| pass(true, sums, out))
    }
}

/// Every word and every type.
pub(crate) fn units() -> Vec<Unit> {
    let mut specs: Vec<Spec> = [1, 2, 4, 8, 16].map(gather_spec).into();
    specs.extend(DType::ALL.iter().flat_map(|dtype| [begin_spec(*dtype), scatter_add_spec(*dtype, false)]));
    specs.extend([DType::F16, DType::BF16].map(|dtype| scatter_add_spec(dtype, true)));
    specs.into_iter().map(Unit::everywhere).collect()
}
