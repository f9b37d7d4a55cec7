//! GPU form of layer_norm: which specialisation, how many groups.

use super::{Backward, BackwardArgs, Forward, ForwardArgs, Norm};
use crate::device::Run;
use crate::device::gpu::rows::{Layout, Pass, rows_text, sum_parts, sums_spec};
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};

params! {
    /// Sizes of one pass; `slots` row slots share the rows in the backward pass.
    Sizes as "layer_norm_params" { rows: u32, cols: u32, slots: u32, eps: f64 }
}

static FORWARD: Source = Source {
    file: "layer_norm/forward.metal",
    body: concat!(rows_text!(), include_str!("forward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BACKWARD: Source = Source {
    file: "layer_norm/backward.metal",
    body: concat!(rows_text!(), include_str!("backward.metal")),
    declarations: &[Sizes::DECLARATION],
};

fn plan(norm: &Norm, pass: Pass, aligned: bool) -> Layout {
    let mut layout = Layout::new(norm.cols, norm.dtype, pass, aligned);
    // As many threads as registers allow: the backward pass has twice the sums of RMS norm's. Of bfloat16, 16384 x 4096
    // on an H200: forward 85 % of copy bandwidth with 1280 threads a unit, 91 % with 1536; backward 75 and 85 % with 512
    // and 768.
    let wide = [norm.weight, norm.bias].iter().flatten().any(|dtype| dtype.size() > 2);
    let resident = match pass {
        Pass::Forward if layout.halves() && !wide => 1536,
        Pass::Forward => layout.threads(),
        Pass::Backward if layout.halves() => 768,
        Pass::Backward => 512,
    };
    layout.groups_per_unit = (resident / layout.threads()).max(1);
    layout
}

fn spec(layout: &Layout, norm: &Norm, pass: Pass, add: bool) -> Spec {
    let entry = match (pass, add) {
        (Pass::Forward, false) => "layer_norm_fwd",
        (Pass::Forward, true) => "add_layer_norm_fwd",
        (Pass::Backward, false) => "layer_norm_bwd",
        (Pass::Backward, true) => "add_layer_norm_bwd",
    };
    let mut defines = layout.defines(norm.dtype);
    defines.extend([
        Define::Word("ROW_W", norm.weight.unwrap_or(norm.dtype).kernel_word()),
        Define::Number("ROW_WEIGHT", u32::from(norm.weight.is_some())),
        Define::Number("ROW_ADD", u32::from(add)),
    ]);
    let source = match pass {
        Pass::Forward => {
            defines.extend([
                Define::Word("ROW_B", norm.bias.unwrap_or(norm.dtype).kernel_word()),
                Define::Number("ROW_BIAS", u32::from(norm.bias.is_some())),
            ]);
            &FORWARD
        }
        Pass::Backward => {
            defines.push(Define::Number("ROW_SUMS", u32::from(has_sums(norm))));
            &BACKWARD
        }
    };
    Spec { source, entry, threads: layout.threads(), defines }
}

fn has_sums(norm: &Norm) -> bool {
    norm.weight.is_some() || norm.bias.is_some()
}

/// The ordered sum; one without a tensor goes to the workspace.
fn ordered(norm: &Norm) -> Spec {
    let dtype = norm.dtype.compute();
    sums_spec(norm.dtype, norm.weight.unwrap_or(dtype), Some(norm.bias.unwrap_or(dtype)))
}

impl<D: Gpu> Run<Forward> for D {
    fn run(&self, Forward(norm): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        if norm.rows == 0 || norm.cols == 0 {
            return Ok(());
        }
        let (residual, sum) = args.residual.unzip();
        let (weight, bias) = (args.weight.unwrap_or(args.x), args.bias.unwrap_or(args.x));
        let buffers =
            [Some(args.x), residual, Some(weight), Some(bias), Some(args.y), sum, Some(args.mean), Some(args.rstd)];
        let layout = plan(norm, Pass::Forward, buffers[..6].iter().flatten().all(|b| self.aligned(b, 16)));
        let sizes = Sizes { rows: norm.rows as u32, cols: norm.cols as u32, slots: 0, eps: norm.eps };
        let words = sizes.words();
        let mut list: Vec<_> = buffers.into_iter().flatten().map(Arg::Buffer).collect();
        list.push(Arg::Params(&words));
        let spec = spec(&layout, norm, Pass::Forward, residual.is_some());
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
        let wide = norm.dtype.compute().size();
        let parts = self.alloc(if has_sums(norm) { slots * 2 * norm.cols * wide } else { 64 })?;
        let sizes = Sizes { rows: norm.rows as u32, cols: norm.cols as u32, slots: slots as u32, eps: 0.0 };
        let words = sizes.words();
        let buffers = [
            Some(args.dy),
            Some(args.h),
            Some(weight),
            Some(args.mean),
            Some(args.rstd),
            args.d_sum,
            Some(args.dx),
            Some(&parts),
        ];
        let mut list: Vec<_> = buffers.into_iter().flatten().map(Arg::Buffer).collect();
        list.push(Arg::Params(&words));
        self.launch(&spec(&layout, norm, Pass::Backward, args.d_sum.is_some()), groups, &list)?;
        if has_sums(norm) {
            let unused = match (args.dw, args.db) {
                (Some(_), Some(_)) => None,
                _ => Some(self.alloc(norm.cols * wide)?),
            };
            let [dw, db] = [args.dw, args.db].map(|sum| sum.or(unused.as_ref()).expect("a place for the sum"));
            sum_parts(self, &ordered(norm), &parts, dw, Some(db), (slots, norm.cols))?;
        }
        Ok(())
    }
}

/// The specialisations of common row lengths, aligned and not.
pub(crate) fn units() -> Vec<Unit> {
    use DType::{BF16, F16, F32, F64};
    let both = |dtype| (Some(dtype), Some(dtype));
    let types = [
        (F32, both(F32)),
        (F16, both(F16)),
        (BF16, both(BF16)),
        (BF16, both(F32)),
        (BF16, (Some(BF16), None)),
        (F32, (None, None)),
        (F64, both(F64)),
    ];
    let mut specs = Vec::new();
    for (dtype, (weight, bias)) in types {
        // Every layout of two types; of the others, what differs by type.
        let every = (dtype, weight) == (F32, Some(F32)) || (dtype, weight) == (BF16, Some(BF16)) && bias.is_some();
        let cols: &[usize] = if every { &[1, 64, 512, 1023, 4096, 8192, 16384, 32768] } else { &[64, 4096] };
        for &cols in cols {
            let norm = Norm { rows: 1, cols, eps: 0.0, dtype, weight, bias };
            let passes =
                [(Pass::Forward, false), (Pass::Backward, false), (Pass::Forward, true), (Pass::Backward, true)];
            let all = passes.map(|(pass, add)| spec(&plan(&norm, pass, true), &norm, pass, add));
            for spec in all.into_iter().chain(has_sums(&norm).then(|| ordered(&norm))) {
                if !specs.contains(&spec) {
                    specs.push(spec);
                }
            }
        }
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
