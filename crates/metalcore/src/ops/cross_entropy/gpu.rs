//! GPU form of cross_entropy: which specialisation, how many groups.

use super::{Backward, BackwardArgs, CrossEntropy, Forward, ForwardArgs, Reduction};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, Index, params};
use smallvec::smallvec;

params! {
    /// Sizes and options. `parts` groups share a row in the backward pass.
    Sizes as "cross_entropy_params" {
        rows: u32, cols: u32, parts: u32, mean: u32, scalar: u32, ignore_low: u32, ignore_high: u32, smoothing: f64,
    }
}

static FORWARD: Source = Source {
    file: "cross_entropy/forward.metal",
    body: concat!(include_str!("row.metal"), include_str!("forward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static REDUCE: Source = Source {
    file: "cross_entropy/reduce.metal",
    body: concat!(include_str!("row.metal"), include_str!("reduce.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BACKWARD: Source = Source {
    file: "cross_entropy/backward.metal",
    body: concat!(include_str!("row.metal"), include_str!("backward.metal")),
    declarations: &[Sizes::DECLARATION],
};

/// How a row is laid over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    threads_per_row: u32,
    rows_per_group: u32,
    vec: u32,
    chunks: u32,
}

impl Plan {
    /// `aligned`: tensors start at a multiple of 16 bytes. A thread has 16 elements in flight: 32 KiB on a
    /// multiprocessor with 1024 threads of 16-bit elements, which is what hides the latency of an H200's memory.
    fn forward(problem: &CrossEntropy, aligned: bool) -> Plan {
        let (widest, held) = widths(problem.dtype);
        // Where rows start anywhere a thread's elements are a stride apart: the order of the sum, and so the bits of a
        // row's loss, do not depend on which row it is.
        let vec = if aligned && problem.cols.is_multiple_of(widest as usize) { widest } else { 1 };
        let threads_per_row = problem.cols.div_ceil(held as usize).next_power_of_two().clamp(32, 512) as u32;
        Plan::new(threads_per_row, vec, held)
    }

    /// Of 16-bit elements a thread holds 32 as they lie in memory: 94 % of copy bandwidth of 512 x 128256 on an H200, 81 %
    /// with 16 that are floats at once.
    fn backward(problem: &CrossEntropy, aligned: bool) -> Plan {
        let (widest, mut held) = widths(problem.dtype);
        if aligned && widest == 8 {
            held *= 2;
        }
        let vec = if aligned { widest } else { 1 };
        let threads_per_row = (problem.cols + widest as usize).div_ceil(held as usize).next_power_of_two();
        Plan::new(threads_per_row.clamp(32, 256) as u32, vec, held)
    }

    fn new(threads_per_row: u32, vec: u32, held: u32) -> Plan {
        Plan { threads_per_row, rows_per_group: if threads_per_row == 32 { 4 } else { 1 }, vec, chunks: held / vec }
    }

    fn spec(&self, problem: &CrossEntropy, source: &'static Source, entry: &'static str, flag: Define) -> Spec {
        let threads = self.threads_per_row * self.rows_per_group;
        let resident = if problem.dtype == DType::F64 { 512 } else { 1024 };
        Spec {
            source,
            entry,
            threads,
            defines: smallvec![
                Define::Number("GK_F64", u32::from(problem.dtype == DType::F64)),
                Define::Word("CE_T", problem.dtype.kernel_word()),
                Define::Word("CE_I", problem.index.kernel_word()),
                Define::Number("CE_TPR", self.threads_per_row),
                Define::Number("CE_ROWS", self.rows_per_group),
                Define::Number("CE_VEC", self.vec),
                Define::Number("CE_V", self.chunks),
                flag,
                Define::Number("GK_MIN_GROUPS", (resident / threads).max(1)),
            ],
        }
    }

    fn forward_spec(&self, problem: &CrossEntropy) -> Spec {
        let flag = Define::Number("CE_SMOOTH", u32::from(problem.smoothing != 0.0));
        self.spec(problem, &FORWARD, "cross_entropy_fwd", flag)
    }

    fn backward_spec(&self, problem: &CrossEntropy, in_place: bool) -> Spec {
        let entry = if in_place { "cross_entropy_bwd_" } else { "cross_entropy_bwd" };
        self.spec(problem, &BACKWARD, entry, Define::Number("CE_IN_PLACE", u32::from(in_place)))
    }
}

/// Elements of a chunk, and of a thread.
fn widths(dtype: DType) -> (u32, u32) {
    match dtype {
        DType::F64 => (4, 8),
        DType::F32 => (4, 16),
        DType::F16 | DType::BF16 => (8, 16),
    }
}

fn reduce_spec(problem: &CrossEntropy) -> Spec {
    let one = Plan::new(1024, 1, 1);
    one.spec(problem, &REDUCE, "cross_entropy_reduce", Define::Number("CE_SMOOTH", 0))
}

fn sizes(problem: &CrossEntropy, parts: usize) -> Vec<u32> {
    Sizes {
        rows: problem.rows as u32,
        cols: problem.cols as u32,
        parts: parts as u32,
        mean: u32::from(problem.reduction == Reduction::Mean),
        scalar: u32::from(problem.reduction != Reduction::None),
        ignore_low: problem.ignore as u32,
        ignore_high: (problem.ignore >> 32) as u32,
        smoothing: problem.smoothing,
    }
    .words()
}

impl<D: Gpu> Run<Forward> for D {
    fn run(&self, Forward(problem): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        let words = sizes(problem, 1);
        if problem.rows != 0 {
            let plan = Plan::forward(problem, self.aligned(args.logits, 16));
            let list = [args.logits, args.targets, args.losses, args.lse].map(Arg::Buffer);
            let list: Vec<_> = list.into_iter().chain([Arg::Params(&words)]).collect();
            let groups = problem.rows.div_ceil(plan.rows_per_group as usize);
            self.launch(&plan.forward_spec(problem), groups, &list)?;
        }
        if let Some((loss, count)) = args.reduced {
            let list = [args.losses, args.targets, loss, count].map(Arg::Buffer);
            let list: Vec<_> = list.into_iter().chain([Arg::Params(&words)]).collect();
            self.launch(&reduce_spec(problem), 1, &list)?;
        }
        Ok(())
    }
}

impl<D: Gpu> Run<Backward> for D {
    fn run(&self, Backward(problem): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        if problem.rows == 0 || problem.cols == 0 {
            return Ok(());
        }
        let aligned = self.aligned(args.dx, 16) && args.logits.is_none_or(|logits| self.aligned(logits, 16));
        let plan = Plan::backward(problem, aligned);
        let per_group = (plan.threads_per_row * plan.chunks * plan.vec) as usize;
        // A row may start inside a chunk.
        let parts = (problem.cols + plan.vec as usize - 1).div_ceil(per_group);
        let words = sizes(problem, parts);
        let first = args.logits.unwrap_or(args.dx);
        let mut list: Vec<_> =
            [args.grad, first, args.targets, args.lse, args.count.unwrap_or(args.lse)].map(Arg::Buffer).into();
        if args.logits.is_some() {
            list.push(Arg::Buffer(args.dx));
        }
        list.push(Arg::Params(&words));
        let groups = problem.rows.div_ceil(plan.rows_per_group as usize) * parts;
        self.launch(&plan.backward_spec(problem, args.logits.is_none()), groups, &list)
    }
}

/// The specialisations of common numbers of classes.
pub(crate) fn units() -> Vec<Unit> {
    let mut specs = Vec::new();
    for dtype in DType::ALL {
        for index in [Index::I64, Index::I32] {
            let cols: &[usize] = match index {
                Index::I64 => &[10, 1000, 1023, 1024, 32000, 50257, 128_256],
                Index::I32 => &[32000],
            };
            for &cols in cols {
                for smoothing in [0.0, 0.1] {
                    let reduction = Reduction::Mean;
                    let problem = CrossEntropy { rows: 1, cols, dtype, index, ignore: -100, smoothing, reduction };
                    let (forward, backward) = (Plan::forward(&problem, true), Plan::backward(&problem, true));
                    let passes = [
                        forward.forward_spec(&problem),
                        backward.backward_spec(&problem, false),
                        backward.backward_spec(&problem, true),
                        reduce_spec(&problem),
                    ];
                    for spec in passes {
                        if !specs.contains(&spec) {
                            specs.push(spec);
                        }
                    }
                }
            }
        }
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
