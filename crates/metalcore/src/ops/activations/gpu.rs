//! GPU form of the activations: which specialisation, how many groups.

use super::{Activation, Backward, BackwardArgs, Forward, ForwardArgs, Function, Second};
use crate::device::Run;
use crate::device::gpu::rows::{sum_parts, sums_spec};
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Number of elements; chunks of a row and the distances of rows of x and up, 0 chunks where they are contiguous.
    Sizes as "activation_params" {
        function: u32, numel_low: u32, numel_high: u32, row_chunks: u32, x_stride: u32, up_stride: u32,
    }
}
params! {
    /// Sizes of the form with a bias: `tiles` groups share a row, `slots` simd groups the rows.
    BiasSizes as "bias_activation_params" { function: u32, rows: u32, cols: u32, tiles: u32, slots: u32 }
}

static POINTWISE: Source = Source {
    file: "activations/pointwise.metal",
    body: concat!(include_str!("curve.metal"), include_str!("pointwise.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BIAS: Source = Source {
    file: "activations/bias.metal",
    body: concat!(include_str!("curve.metal"), include_str!("bias.metal")),
    declarations: &[BiasSizes::DECLARATION],
};

/// Threads of a group.
const THREADS: usize = 256;

/// The kernels' number of a function.
fn word(function: Function) -> u32 {
    match function {
        Function::Silu => 0,
        Function::Gelu => 1,
        Function::GeluTanh => 2,
    }
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
}

/// How elements are laid over threads.
#[derive(Clone, Copy)]
struct Plan {
    /// Elements of a thread's chunk.
    vec: usize,
    /// Groups that fit on a unit at once: what the compiler may use of registers.
    resident: usize,
}

impl Plan {
    /// `aligned`: every tensor starts at a multiple of 16 bytes.
    fn new(problem: &Activation, pass: Pass, aligned: bool) -> Plan {
        let by_row = problem.rows > 1 || matches!(problem.second, Second::Bias(_));
        let [x, up] = problem.strides;
        let whole = !by_row || [problem.cols, x, up].iter().all(|size| size.is_multiple_of(8));
        let vec = if aligned && whole { 8 } else { 1 };
        // A chunk of 16-bit elements is half the bytes, so that more threads are needed to keep memory busy: of bfloat16,
        // 16384 x 4096 on an H200, silu forward 82 % of copy bandwidth with 4 groups and 97 with 8, backward 81 and 100,
        // gated 80 and 101, backward 86 and 96 with 6. Of float32 fewer do as well or better. What spills is slower.
        let resident = match (problem.dtype.size(), problem.second, pass) {
            (8, ..) => 2,
            (4, Second::Up, _) | (4, _, Pass::Backward) => 4,
            (4, _, Pass::Forward) => 5,
            (_, Second::Bias(_), Pass::Backward) => 4,
            (_, Second::Up, Pass::Backward) => 6,
            _ => 8,
        };
        Plan { vec, resident }
    }

    fn spec(&self, problem: &Activation, pass: Pass) -> Spec {
        use Define::{Number, Word};
        let (entry, bias) = match (problem.second, pass) {
            (Second::None, Pass::Forward) => ("activation_fwd", None),
            (Second::None, Pass::Backward) => ("activation_bwd", None),
            (Second::Up, Pass::Forward) => ("gated_activation_fwd", None),
            (Second::Up, Pass::Backward) => ("gated_activation_bwd", None),
            (Second::Bias(dtype), Pass::Forward) => ("bias_activation_fwd", Some(dtype)),
            (Second::Bias(dtype), Pass::Backward) => ("bias_activation_bwd", Some(dtype)),
        };
        let mut defines = smallvec![
            Number("GK_F64", u32::from(problem.dtype == DType::F64)),
            Word("ACT_T", problem.dtype.kernel_word()),
            Number("ACT_BACKWARD", u32::from(pass == Pass::Backward)),
            Number("ACT_VEC", self.vec as u32),
            Number("ACT_THREADS", THREADS as u32),
            Number("GK_MIN_GROUPS", self.resident as u32),
        ];
        match bias {
            Some(dtype) => defines.push(Word("ACT_B", dtype.kernel_word())),
            None => defines.push(Number("ACT_GATED", u32::from(problem.second == Second::Up))),
        }
        Spec { source: if bias.is_some() { &BIAS } else { &POINTWISE }, entry, threads: THREADS as u32, defines }
    }

    /// Groups and parameters of a form without a bias.
    fn pointwise(&self, problem: &Activation) -> (usize, Vec<u32>) {
        let numel = problem.numel();
        let sizes = Sizes {
            function: word(problem.function),
            numel_low: numel as u32,
            numel_high: (numel as u64 >> 32) as u32,
            row_chunks: if problem.rows > 1 { (problem.cols / self.vec) as u32 } else { 0 },
            x_stride: problem.strides[0] as u32,
            up_stride: problem.strides[1] as u32,
        };
        (numel.div_ceil(THREADS * self.vec), sizes.words())
    }

    /// Tiles of columns, blocks of rows and parameters of a form with a bias. Several times the groups that run at once
    /// leave no unit idle at the end; whole rounds of them do not matter then. The gradient has a partial sum a block.
    fn bias(&self, problem: &Activation, pass: Pass, units: usize) -> (usize, usize, Vec<u32>) {
        let tiles = problem.cols.div_ceil(32 * self.vec);
        let per_block = THREADS / 32;
        let rounds = if pass == Pass::Forward { 8 } else { 4 };
        let blocks = (rounds * units * self.resident / tiles).clamp(1, problem.rows.div_ceil(per_block).max(1));
        let sizes = BiasSizes {
            function: word(problem.function),
            rows: problem.rows as u32,
            cols: problem.cols as u32,
            tiles: tiles as u32,
            slots: (blocks * per_block) as u32,
        };
        (tiles, blocks, sizes.words())
    }
}

impl<D: Gpu> Run<Forward> for D {
    fn run(&self, Forward(problem): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        if problem.numel() == 0 {
            return Ok(());
        }
        let buffers = [Some(args.x), args.second, Some(args.y)];
        let plan = Plan::new(problem, Pass::Forward, buffers.iter().flatten().all(|b| self.aligned(b, 16)));
        let (groups, words) = match problem.second {
            Second::Bias(_) => {
                let (tiles, blocks, words) = plan.bias(problem, Pass::Forward, self.caps().units);
                (tiles * blocks, words)
            }
            _ => plan.pointwise(problem),
        };
        let mut list: Vec<_> = buffers.into_iter().flatten().map(Arg::Buffer).collect();
        list.push(Arg::Params(&words));
        self.launch(&plan.spec(problem, Pass::Forward), groups, &list)
    }
}

impl<D: Gpu> Run<Backward> for D {
    fn run(&self, Backward(problem): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        let bias = matches!(problem.second, Second::Bias(_));
        if problem.cols == 0 || (problem.numel() == 0 && !bias) {
            return Ok(());
        }
        let mut buffers = vec![args.dy, args.x];
        buffers.extend(args.second);
        buffers.push(args.dx);
        let bias = match problem.second {
            Second::Bias(dtype) => args.d_second.map(|d| (dtype, d)),
            _ => {
                buffers.extend(args.d_second);
                None
            }
        };
        let plan = Plan::new(problem, Pass::Backward, buffers.iter().all(|b| self.aligned(b, 16)));
        let spec = plan.spec(problem, Pass::Backward);
        let mut list: Vec<_> = buffers.into_iter().map(Arg::Buffer).collect();
        let Some((dtype, d_bias)) = bias else {
            let (groups, words) = plan.pointwise(problem);
            list.push(Arg::Params(&words));
            return self.launch(&spec, groups, &list);
        };
        let (tiles, blocks, words) = plan.bias(problem, Pass::Backward, self.caps().units);
        let parts = self.alloc(blocks * problem.cols * problem.dtype.compute().size())?;
        list.extend([Arg::Buffer(&parts), Arg::Params(&words)]);
        self.launch(&spec, tiles * blocks, &list)?;
        sum_parts(self, &sums_spec(problem.dtype, dtype, None), &parts, d_bias, None, (blocks, problem.cols))
    }
}

/// The specialisations: forms, types, aligned and not.
pub(crate) fn units() -> Vec<Unit> {
    use DType::{BF16, F16, F32, F64};
    let mut specs = Vec::new();
    for (dtype, bias) in [(F32, F32), (F16, F16), (BF16, BF16), (BF16, F32), (F64, F64)] {
        for second in [Second::None, Second::Up, Second::Bias(bias)] {
            for pass in [Pass::Forward, Pass::Backward] {
                for aligned in [true, false] {
                    let problem =
                        Activation { function: Function::Silu, rows: 1, cols: 8, dtype, second, strides: [8; 2] };
                    let spec = Plan::new(&problem, pass, aligned).spec(&problem, pass);
                    if !specs.contains(&spec) {
                        specs.push(spec);
                    }
                }
            }
        }
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
