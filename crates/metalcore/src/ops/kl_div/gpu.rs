//! GPU form of kl_div: which specialisation, how many groups.

use super::{Backward, BackwardArgs, Forward, ForwardArgs, KlDiv};
use crate::device::Run;
use crate::device::gpu::rows::{Layout, Pass, rows_text};
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};

params! {
    /// Sizes of one pass. `parts` groups share a row in the backward pass.
    Sizes as "kl_div_params" { rows: u32, cols: u32, parts: u32 }
}

static FORWARD: Source = Source {
    file: "kl_div/forward.metal",
    body: concat!(rows_text!(), include_str!("row.metal"), include_str!("forward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BACKWARD: Source = Source {
    file: "kl_div/backward.metal",
    body: concat!(rows_text!(), include_str!("row.metal"), include_str!("backward.metal")),
    declarations: &[Sizes::DECLARATION],
};

/// `wanted`: which gradients; None is the forward pass, which holds two rows as well. Nothing is read twice.
fn plan(problem: &KlDiv, wanted: Option<(bool, bool)>, aligned: bool) -> (Layout, Spec) {
    let mut layout = Layout::new(problem.cols, problem.dtype, Pass::Backward, aligned).narrow(problem.cols);
    if !layout.vectors() {
        // 32 single elements on their way spill in 128 registers.
        layout.groups_per_unit = (layout.groups_per_unit / 2).max(1);
    }
    let mut defines = layout.defines(problem.dtype);
    let (source, entry) = match wanted {
        None => (&FORWARD, "kl_div_fwd"),
        Some((dp, dq)) => {
            defines.extend([Define::Number("KL_P", u32::from(dp)), Define::Number("KL_Q", u32::from(dq))]);
            (&BACKWARD, "kl_div_bwd")
        }
    };
    (layout, Spec { source, entry, threads: layout.threads(), defines })
}

fn launch<D: Gpu>(
    device: &D,
    problem: &KlDiv,
    wanted: Option<(bool, bool)>,
    rows: &[&D::Buffer],
    list: &[&D::Buffer],
) -> Result<()> {
    let (layout, spec) = plan(problem, wanted, rows.iter().all(|tensor| device.aligned(tensor, 16)));
    let parts = if wanted.is_some() { layout.tiles(problem.cols) } else { 1 };
    let words = Sizes { rows: problem.rows as u32, cols: problem.cols as u32, parts: parts as u32 }.words();
    let mut list: Vec<_> = list.iter().copied().map(Arg::Buffer).collect();
    list.push(Arg::Params(&words));
    device.launch(&spec, problem.rows.div_ceil(layout.rows_per_group as usize) * parts, &list)
}

impl<D: Gpu> Run<Forward> for D {
    fn run(&self, Forward(problem): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        if problem.rows == 0 {
            return Ok(());
        }
        launch(self, problem, None, &[args.log_p, args.log_q], &[args.log_p, args.log_q, args.losses])
    }
}

impl<D: Gpu> Run<Backward> for D {
    fn run(&self, Backward(problem): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        if problem.rows == 0 || problem.cols == 0 || (args.dp.is_none() && args.dq.is_none()) {
            return Ok(());
        }
        let rows: Vec<_> = [Some(args.log_p), Some(args.log_q), args.dp, args.dq].into_iter().flatten().collect();
        let list: Vec<_> = [args.grad].into_iter().chain(rows.iter().copied()).collect();
        launch(self, problem, Some((args.dp.is_some(), args.dq.is_some())), &rows, &list)
    }
}

/// The specialisations of common numbers of classes, aligned and not.
pub(crate) fn units() -> Vec<Unit> {
    let mut specs = Vec::new();
    for dtype in DType::ALL {
        for cols in [1, 64, 1023, 128_256] {
            let problem = KlDiv { rows: 1, cols, dtype };
            for wanted in [None, Some((true, true)), Some((false, true)), Some((true, false))] {
                let (_, spec) = plan(&problem, wanted, true);
                if !specs.contains(&spec) {
                    specs.push(spec);
                }
            }
        }
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
