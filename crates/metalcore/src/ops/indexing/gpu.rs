//! GPU form of gather, index_select and scatter_add: words, passes, how many groups.

use super::{Gather, GatherArgs, Indexing, MOST_DIMS, ScatterAdd, ScatterAddArgs};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, Index, params};
use smallvec::smallvec;

params! {
    /// As [`Indexing`], a dimension in each entry of the lists.
    Sizes as "indexing_params" {
        dims: u32, wide: u32, total: u64, limit: u64, step: u64, sizes: [u64; 6], table: [u64; 6], index: [u64; 6],
        values: [u64; 6], missing: [u32; 4],
    }
}

static GATHER: Source = Source {
    file: "indexing/gather.metal",
    body: concat!(include_str!("place.metal"), include_str!("gather.metal")),
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

/// What is done with the elements that the index names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Sums of 16-bit elements begin.
    Begin,
    /// Terms are added.
    Add,
    /// Sums are rounded.
    Round,
}

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

fn scatter_add_spec(dtype: DType, pass: Pass) -> Spec {
    let (stored, sum) = (dtype.kernel_word(), dtype.compute().kernel_word());
    let (from, to) = if pass == Pass::Round { (sum, stored) } else { (stored, sum) };
    let defines = smallvec![
        Define::Number("GK_F64", u32::from(dtype == DType::F64)),
        Define::Word("SCATTER_FROM", from),
        Define::Word("SCATTER_TO", to),
        Define::Number("SCATTER_PASS", pass as u32),
        Define::Number("GK_MIN_GROUPS", 4),
    ];
    Spec { source: &SCATTER_ADD, entry: "scatter_add", threads: THREADS, defines }
}

fn launch<D: Gpu>(
    device: &D,
    spec: &Spec,
    (from, index, to): (&D::Buffer, &D::Buffer, &D::Buffer),
    indexing: &Indexing,
    missing: [u32; 4],
) -> Result<()> {
    let list = |of: fn(&super::Dim) -> usize| {
        let mut list = [0; MOST_DIMS];
        list.iter_mut().zip(&indexing.dims).for_each(|(entry, dim)| *entry = of(dim) as u64);
        list
    };
    let sizes = Sizes {
        dims: indexing.dims.len() as u32,
        wide: u32::from(indexing.index == Index::I64),
        total: indexing.total as u64,
        limit: indexing.limit as u64,
        step: indexing.step as u64,
        sizes: list(|dim| dim.size),
        table: list(|dim| dim.table),
        index: list(|dim| dim.index),
        values: list(|dim| dim.values),
        missing,
    };
    let words = sizes.words();
    // The index as int32 and as int64: one of them is read.
    let args = [Arg::Buffer(from), Arg::Buffer(index), Arg::Buffer(index), Arg::Buffer(to), Arg::Params(&words)];
    device.launch(spec, indexing.total.div_ceil(THREADS as usize * AHEAD), &args)
}

impl<D: Gpu> Run<Gather> for D {
    fn run(&self, problem: &Gather, args: GatherArgs<'_, Self::Buffer>) -> Result<()> {
        if problem.indexing.total == 0 {
            return Ok(());
        }
        let buffers = (args.src, args.index, args.out);
        let mut bytes = 16;
        while bytes > problem.bytes {
            let words = problem.indexing.in_words(bytes / problem.bytes);
            let aligned = |buffer| self.aligned(buffer, bytes as u64);
            if let Some(words) = words.filter(|_| aligned(args.src) && aligned(args.out)) {
                return launch(self, &gather_spec(bytes), buffers, &words, problem.missing);
            }
            bytes /= 2;
        }
        launch(self, &gather_spec(problem.bytes), buffers, &problem.indexing, problem.missing)
    }
}

impl<D: Gpu> Run<ScatterAdd> for D {
    fn run(&self, problem: &ScatterAdd, args: ScatterAddArgs<'_, Self::Buffer>) -> Result<()> {
        let ScatterAdd { indexing, dtype, len } = problem;
        if indexing.total == 0 || *len == 0 {
            return Ok(());
        }
        let pass =
            |pass, from, to| launch(self, &scatter_add_spec(*dtype, pass), (from, args.index, to), indexing, [0; 4]);
        if dtype.size() > 2 {
            return pass(Pass::Add, args.src, args.out);
        }
        let sums = self.alloc(len * 4)?;
        pass(Pass::Begin, args.out, &sums)?;
        pass(Pass::Add, args.src, &sums)?;
        pass(Pass::Round, &sums, args.out)
    }
}

/// Every word and every type.
pub(crate) fn units() -> Vec<Unit> {
    let mut specs: Vec<Spec> = [1, 2, 4, 8, 16].map(gather_spec).into();
    specs.extend(DType::ALL.map(|dtype| scatter_add_spec(dtype, Pass::Add)));
    for dtype in [DType::F16, DType::BF16] {
        specs.extend([Pass::Begin, Pass::Round].map(|pass| scatter_add_spec(dtype, pass)));
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
