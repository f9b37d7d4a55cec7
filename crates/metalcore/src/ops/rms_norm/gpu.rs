//! GPU form of rms_norm: which specialisation, how many groups.

use super::{Backward, BackwardArgs, Forward, ForwardArgs, Norm};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one pass; `slots` row slots share the rows in the backward pass.
    Sizes as "rms_norm_params" { rows: u32, cols: u32, slots: u32, eps: f64 }
}
params! {
    /// Sizes of the ordered sum.
    WeightSizes as "rms_norm_dw_params" { slots: u32, cols: u32 }
}

static FORWARD: Source = Source {
    file: "rms_norm/forward.metal",
    body: concat!(include_str!("row.metal"), include_str!("forward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BACKWARD: Source = Source {
    file: "rms_norm/backward.metal",
    body: concat!(include_str!("row.metal"), include_str!("backward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static WEIGHT_GRAD: Source = Source {
    file: "rms_norm/weight_grad.metal",
    body: include_str!("weight_grad.metal"),
    declarations: &[WeightSizes::DECLARATION],
};

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
}

/// How a row is laid over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    threads_per_row: u32,
    rows_per_group: u32,
    vec: u32,
    chunks: u32,
    stream: bool,
    /// Groups that are to fit on a unit at once.
    groups_per_unit: u32,
}

impl Plan {
    /// `aligned`: every tensor starts at a multiple of 16 bytes.
    fn new(norm: &Norm, pass: Pass, aligned: bool) -> Plan {
        let widest = if norm.dtype.size() == 2 { 8 } else { 4 };
        let vec = if aligned && norm.cols.is_multiple_of(widest as usize) { widest } else { 1 };
        // 16 floats of a row for each thread keep its loads in flight at once. More would spill: a thread has 64
        // registers in a group of 1024, 128 in one of 512, and the backward pass holds x, dy and its share of dw.
        let held = if norm.dtype == DType::F64 { 8 } else { 16 };
        let most_threads = if pass == Pass::Forward && norm.dtype != DType::F64 { 1024 } else { 512 };
        let threads_per_row = norm.cols.div_ceil(held).next_power_of_two().clamp(32, most_threads) as u32;
        let needed = norm.cols.div_ceil((threads_per_row * vec) as usize).max(1).next_power_of_two() as u32;
        let most = held as u32 / vec;
        let rows_per_group = if threads_per_row == 32 { 4 } else { 1 };
        // Backward, 16384 x 4096 on an H200: 94 % of copy bandwidth with 512 threads a unit that hold floats, and with
        // 1024 that hold 16-bit elements as they lie in memory; more slots cost partial sums, fewer leave gaps.
        let resident = if vec == 8 { 1024 } else { 512 };
        let groups_per_unit =
            if pass == Pass::Forward { 1 } else { (resident / (threads_per_row * rows_per_group)).max(1) };
        Plan { threads_per_row, rows_per_group, groups_per_unit, vec, chunks: needed.min(most), stream: needed > most }
    }

    fn spec(&self, norm: &Norm, pass: Pass, add: bool) -> Spec {
        use Define::{Number, Word};
        let entry = match (pass, add) {
            (Pass::Forward, false) => "rms_norm_fwd",
            (Pass::Forward, true) => "add_rms_norm_fwd",
            (Pass::Backward, false) => "rms_norm_bwd",
            (Pass::Backward, true) => "add_rms_norm_bwd",
        };
        Spec {
            source: if pass == Pass::Forward { &FORWARD } else { &BACKWARD },
            entry,
            threads: self.threads_per_row * self.rows_per_group,
            defines: smallvec![
                float64(norm.dtype),
                Word("RMS_T", norm.dtype.kernel_word()),
                Word("RMS_W", norm.weight.unwrap_or(norm.dtype).kernel_word()),
                Number("RMS_WEIGHT", u32::from(norm.weight.is_some())),
                Number("RMS_ADD", u32::from(add)),
                Number("RMS_TPR", self.threads_per_row),
                Number("RMS_ROWS", self.rows_per_group),
                Number("RMS_VEC", self.vec),
                Number("RMS_V", self.chunks),
                Number("RMS_STREAM", u32::from(self.stream)),
                Number("GK_MIN_GROUPS", self.groups_per_unit),
            ],
        }
    }
}

fn float64(dtype: DType) -> Define {
    Define::Number("GK_F64", u32::from(dtype == DType::F64))
}

/// The ordered sum of parts computed for `dtype` into `weight`.
fn weight_spec(dtype: DType, weight: DType) -> Spec {
    Spec {
        source: &WEIGHT_GRAD,
        entry: "rms_norm_dw",
        threads: 1024,
        defines: smallvec![float64(dtype), Define::Word("RMS_W", weight.kernel_word())],
    }
}

/// sum[i] = ordered sum over slots of parts[slot, i]; parts in the type that `dtype` is computed in, the sum in `weight`.
pub(crate) fn sum_of_slots<D: Gpu>(
    device: &D,
    parts: &D::Buffer,
    (slots, cols): (usize, usize),
    sum: &D::Buffer,
    (dtype, weight): (DType, DType),
) -> Result<()> {
    let words = WeightSizes { slots: slots as u32, cols: cols as u32 }.words();
    let list = [Arg::Buffer(parts), Arg::Buffer(sum), Arg::Params(&words)];
    device.launch(&weight_spec(dtype, weight), cols.div_ceil(32), &list)
}

impl<D: Gpu> Run<Forward> for D {
    fn run(&self, Forward(norm): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        if norm.rows == 0 || norm.cols == 0 {
            return Ok(());
        }
        let weight = args.weight.unwrap_or(args.x);
        let (residual, sum) = args.residual.unzip();
        let buffers = [Some(args.x), residual, Some(weight), Some(args.y), sum, Some(args.rstd)];
        let plan = Plan::new(norm, Pass::Forward, buffers[..5].iter().flatten().all(|b| self.aligned(b, 16)));
        let sizes = Sizes { rows: norm.rows as u32, cols: norm.cols as u32, slots: 0, eps: norm.eps };
        let words = sizes.words();
        let spec = plan.spec(norm, Pass::Forward, residual.is_some());
        let mut list: Vec<_> = buffers.into_iter().flatten().map(Arg::Buffer).collect();
        list.push(Arg::Params(&words));
        self.launch(&spec, norm.rows.div_ceil(plan.rows_per_group as usize), &list)
    }
}

impl<D: Gpu> Run<Backward> for D {
    fn run(&self, Backward(norm): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        if norm.cols == 0 {
            return Ok(());
        }
        let weight = args.weight.unwrap_or(args.h);
        let tensors = [Some(args.dy), Some(args.h), Some(weight), args.d_sum, Some(args.dx)];
        let plan = Plan::new(norm, Pass::Backward, tensors.iter().flatten().all(|b| self.aligned(b, 16)));
        let per_group = plan.rows_per_group as usize;
        let most = self.caps().units * plan.groups_per_unit as usize;
        let groups = most.clamp(1, norm.rows.div_ceil(per_group).max(1));
        let slots = groups * per_group;
        let parts =
            self.alloc(if norm.weight.is_some() { slots * norm.cols * norm.dtype.compute().size() } else { 64 })?;
        let sizes = Sizes { rows: norm.rows as u32, cols: norm.cols as u32, slots: slots as u32, eps: 0.0 };
        let words = sizes.words();
        let buffers =
            [Some(args.dy), Some(args.h), Some(weight), Some(args.rstd), args.d_sum, Some(args.dx), Some(&parts)];
        let mut list: Vec<_> = buffers.into_iter().flatten().map(Arg::Buffer).collect();
        list.push(Arg::Params(&words));
        self.launch(&plan.spec(norm, Pass::Backward, args.d_sum.is_some()), groups, &list)?;
        if let Some(dw) = args.dw {
            let weight = norm.weight.unwrap_or(norm.dtype);
            sum_of_slots(self, &parts, (slots, norm.cols), dw, (norm.dtype, weight))?;
        }
        Ok(())
    }
}

/// The specialisations of common row lengths, aligned and not.
pub(crate) fn units() -> Vec<Unit> {
    use DType::{BF16, F16, F32, F64};
    let types =
        [(F32, Some(F32)), (F16, Some(F16)), (BF16, Some(BF16)), (BF16, Some(F32)), (F32, None), (F64, Some(F64))];
    let mut specs = Vec::new();
    for (dtype, weight) in types {
        for cols in [1, 64, 512, 1023, 1024, 4096, 8192, 16384, 32768, 65536] {
            let norm = Norm { rows: 1, cols, eps: 0.0, dtype, weight };
            let passes =
                [(Pass::Forward, false), (Pass::Backward, false), (Pass::Forward, true), (Pass::Backward, true)];
            let all = passes.map(|(pass, add)| Plan::new(&norm, pass, true).spec(&norm, pass, add));
            for spec in all.into_iter().chain(weight.map(|weight| weight_spec(dtype, weight))) {
                if !specs.contains(&spec) {
                    specs.push(spec);
                }
            }
        }
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
