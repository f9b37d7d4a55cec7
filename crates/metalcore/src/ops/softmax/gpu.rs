//! GPU form of softmax: which specialisation, how many groups.

use super::{Backward, BackwardArgs, Forward, ForwardArgs, Rows};
use crate::device::Run;
use crate::device::gpu::rows::{Layout, Pass, rows_text};
use crate::device::gpu::{Arg, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};

params! {
    /// Sizes of one pass.
    Sizes as "softmax_params" { rows: u32, cols: u32 }
}

static FORWARD: Source = Source {
    file: "softmax/forward.metal",
    body: concat!(rows_text!(), include_str!("forward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BACKWARD: Source = Source {
    file: "softmax/backward.metal",
    body: concat!(rows_text!(), include_str!("backward.metal")),
    declarations: &[Sizes::DECLARATION],
};

fn plan(rows: &Rows, pass: Pass, aligned: bool) -> (Layout, Spec) {
    let mut layout = Layout::new(rows.cols, rows.dtype, pass, aligned).narrow(rows.cols);
    if layout.stream && pass == Pass::Backward && rows.dtype != DType::F64 {
        // No sums of a weight take registers: 81 % of copy bandwidth of 512 x 32768 float32 on an H200, 68 with 512.
        layout.threads_per_row = 1024;
        layout.groups_per_unit = 1;
    } else if layout.halves() && !layout.stream && pass == Pass::Forward {
        // 16384 x 4096 bfloat16: 96 % of copy bandwidth, 87 with as many as need no word.
        layout.groups_per_unit = 2048 / layout.threads();
    }
    let (source, entry) = match pass {
        Pass::Forward => (&FORWARD, "softmax_fwd"),
        Pass::Backward => (&BACKWARD, "softmax_bwd"),
    };
    (layout, Spec { source, entry, threads: layout.threads(), defines: layout.defines(rows.dtype) })
}

fn launch<D: Gpu>(device: &D, rows: &Rows, pass: Pass, tensors: &[&D::Buffer]) -> Result<()> {
    if rows.rows == 0 || rows.cols == 0 {
        return Ok(());
    }
    let (layout, spec) = plan(rows, pass, tensors.iter().all(|tensor| device.aligned(tensor, 16)));
    let words = Sizes { rows: rows.rows as u32, cols: rows.cols as u32 }.words();
    let mut list: Vec<_> = tensors.iter().copied().map(Arg::Buffer).collect();
    list.push(Arg::Params(&words));
    device.launch(&spec, rows.rows.div_ceil(layout.rows_per_group as usize), &list)
}

impl<D: Gpu> Run<Forward> for D {
    fn run(&self, Forward(rows): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        launch(self, rows, Pass::Forward, &[args.x, args.y])
    }
}

impl<D: Gpu> Run<Backward> for D {
    fn run(&self, Backward(rows): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        launch(self, rows, Pass::Backward, &[args.y, args.dy, args.dx])
    }
}

/// The specialisations of common row lengths, aligned and not.
pub(crate) fn units() -> Vec<Unit> {
    let mut specs = Vec::new();
    for dtype in DType::ALL {
        for cols in [1, 3, 8, 16, 33, 64, 512, 1023, 1024, 4096, 4097, 8192, 16384, 32000, 128000] {
            for pass in [Pass::Forward, Pass::Backward] {
                let (_, spec) = plan(&Rows { rows: 1, cols, dtype }, pass, true);
                if !specs.contains(&spec) {
                    specs.push(spec);
                }
            }
        }
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
