//! GPU form of op_name: which specialisation, how many groups.

use super::{Args, OP, OpName};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one call.
    Sizes as "op_name_params" { numel: u32 }
}

static SOURCE: Source =
    Source { file: "op_name/kernel.metal", body: include_str!("kernel.metal"), declarations: &[Sizes::DECLARATION] };

/// Threads of a group (`OP_NAME_THREADS`).
const THREADS: u32 = 256;

fn spec(dtype: DType) -> Spec {
    Spec {
        source: &SOURCE,
        entry: "op_name_fwd",
        threads: THREADS,
        defines: smallvec![
            Define::Number("GK_F64", u32::from(dtype == DType::F64)),
            Define::Word("OP_NAME_T", dtype.kernel_word()),
        ],
    }
}

impl<D: Gpu> Run<OpName> for D {
    fn run(&self, problem: &OpName, args: Args<'_, Self::Buffer>) -> Result<()> {
        if problem.numel == 0 {
            return Ok(());
        }
        let numel = u32::try_from(problem.numel).map_err(|_| Error::Unsupported {
            op: OP,
            reason: format!("{} elements: more than 2^32", problem.numel),
        })?;
        let words = Sizes { numel }.words();
        let list = [Arg::Buffer(args.x), Arg::Buffer(args.y), Arg::Params(&words)];
        self.launch(&spec(problem.dtype), problem.numel.div_ceil(THREADS as usize), &list)
    }
}

/// The specialisations: types.
pub(crate) fn units() -> Vec<Unit> {
    DType::ALL.into_iter().map(|dtype| Unit::everywhere(spec(dtype))).collect()
}
