//! GPU form of rms_norm: which specialisation, how many groups.

use super::{Backward, BackwardArgs, Forward, ForwardArgs, Norm};
use crate::device::Run;
use crate::device::gpu::rows::{Layout, Pass, rows_text, sum_parts, sums_spec};
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};

params! {
    /// Sizes of one pass; `slots` row slots share the rows in the backward pass.
    Sizes as "rms_norm_params" { rows: u32, cols: u32, slots: u32, eps: f64 }
}

static FORWARD: Source = Source {
    file: "rms_norm/forward.metal",
    body: concat!(rows_text!(), include_str!("forward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BACKWARD: Source = Source {
    file: "rms_norm/backward.metal",
    body: concat!(rows_text!(), include_str!("backward.metal")),
    declarations: &[Sizes::DECLARATION],
};
fn plan(norm: &Norm, pass: Pass, aligned: bool) -> Layout {
    Layout::new(norm.cols, norm.dtype, pass, aligned)
}

fn spec(layout: &Layout, norm: &Norm, pass: Pass, add: bool) -> Spec {
    let entry = match (pass, add) {
        (Pass::Forward, false) => "rms_norm_fwd",
        (Pass::Forward, true) => "add_rms_norm_fwd",
        (Pass::Backward, false) => "rms_norm_bwd",
        (Pass::Backward, true) => "add_rms_norm_bwd",
    };
    let mut defines = layout.defines(norm.dtype);
    defines.extend([
        Define::Word("ROW_W", norm.weight.unwrap_or(norm.dtype).kernel_word()),
        Define::Number("ROW_WEIGHT", u32::from(norm.weight.is_some())),
        Define::Number("ROW_ADD", u32::from(add)),
    ]);
    let source = if pass == Pass::Forward { &FORWARD } else { &BACKWARD };
    Spec { source, entry, threads: layout.threads(), defines }
}

fn weight_spec(norm: &Norm) -> Spec {
    sums_spec(norm.dtype, norm.weight.unwrap_or(norm.dtype), None)
}

impl<D: Gpu> Run<Forward> for D {
    fn run(&self, Forward(norm): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        if norm.rows == 0 || norm.cols == 0 {
            return Ok(());
        }
        let weight = args.weight.unwrap_or(args.x);
        let (residual, sum) = args.residual.unzip();
        let buffers = [Some(args.x), residual, Some(weight), Some(args.y), sum, Some(args.rstd)];
        let layout = plan(norm, Pass::Forward, buffers[..5].iter().flatten().all(|b| self.aligned(b, 16)));
        let sizes = Sizes { rows: norm.rows as u32, cols: norm.cols as u32, slots: 0, eps: norm.eps };
        let words = sizes.words();
        let spec = spec(&layout, norm, Pass::Forward, residual.is_some());
        let mut list: Vec<_> = buffers.into_iter().flatten().map(Arg::Buffer).collect();
        list.push(Arg::Params(&words));
        self.launch(&spec, norm.rows.div_ceil(layout.rows_per_group as usize), &list)
    }
}

impl<D: Gpu> Run<Backward> for D {
    fn run(&self, Backward(norm): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        if norm.cols == 0 {
            return Ok(());
        }
        let weight = args.weight.unwrap_or(args.h);
        let tensors = [Some(args.dy), Some(args.h), Some(weight), args.d_sum, Some(args.dx)];
        let layout = plan(norm, Pass::Backward, tensors.iter().flatten().all(|b| self.aligned(b, 16)));
        let per_group = layout.rows_per_group as usize;
        let most = self.caps().units * layout.groups_per_unit as usize;
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
        self.launch(&spec(&layout, norm, Pass::Backward, args.d_sum.is_some()), groups, &list)?;
        if let Some(dw) = args.dw {
            sum_parts(self, &weight_spec(norm), &parts, dw, None, (slots, norm.cols))?;
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
            let all = passes.map(|(pass, add)| spec(&plan(&norm, pass, true), &norm, pass, add));
            for spec in all.into_iter().chain(weight.map(|_| weight_spec(&norm))) {
                if !specs.contains(&spec) {
                    specs.push(spec);
                }
            }
        }
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
