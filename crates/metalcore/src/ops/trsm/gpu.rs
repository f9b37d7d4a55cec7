//! GPU form of trsm: which specialisation, how many groups.

use super::{Args, Diagonal, Matrix, Trsm};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one call: groups that share a matrix, substitutions, and the first one's direction.
    Sizes as "trsm_params" { n: u32, cols: u32, chunks: u32, passes: u32, transposed: u32, forward: u32, unit: u32 }
}

static SOURCE: Source =
    Source { file: "trsm/kernel.metal", body: include_str!("kernel.metal"), declarations: &[Sizes::DECLARATION] };

/// Right sides of a group.
const COLS: usize = 8;

/// One block of 32 rows has work for one simd group. Four tiles of 32 x 33 are the most that fit 32 KiB, and in float64
/// 48 KiB.
fn spec(n: usize, dtype: DType) -> Spec {
    let simd_groups = match n {
        0..=32 => 1,
        33..=64 => 2,
        _ => 4,
    };
    Spec {
        source: &SOURCE,
        entry: "trsm",
        threads: 32 * simd_groups,
        defines: smallvec![
            Define::Number("GK_F64", u32::from(dtype == DType::F64)),
            Define::Number("TRSM_SGS", simd_groups),
        ],
    }
}

impl<D: Gpu> Run<Trsm> for D {
    fn run(&self, problem: &Trsm, args: Args<'_, Self::Buffer>) -> Result<()> {
        let Trsm { batch, n, cols, form, dtype } = *problem;
        if batch * n * cols == 0 {
            return Ok(());
        }
        let pass = form.passes().next().expect("there is at least one");
        let chunks = cols.div_ceil(COLS);
        let sizes = Sizes {
            n: n as u32,
            cols: cols as u32,
            chunks: chunks as u32,
            passes: if form.matrix == Matrix::Square { 2 } else { 1 },
            transposed: u32::from(pass.transposed),
            forward: u32::from(pass.forward),
            unit: u32::from(form.diagonal == Diagonal::Unit),
        };
        let [a, b, x] = [args.a, args.b, args.x].map(Arg::Buffer);
        self.launch(&spec(n, dtype), batch * chunks, &[a, b, x, Arg::Params(&sizes.words())])
    }
}

/// The specialisations that plans choose.
pub(crate) fn units() -> Vec<Unit> {
    let of = |dtype| [32, 64, 65].map(|n| Unit::everywhere(spec(n, dtype)));
    [DType::F32, DType::F64].into_iter().flat_map(of).collect()
}
