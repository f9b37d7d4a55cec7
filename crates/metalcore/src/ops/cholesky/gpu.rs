//! GPU form of cholesky: which kernel, which specialisation, how many groups.

use super::{Args, Cholesky, Triangle};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one call, and whether the upper triangle is meant.
    Sizes as "cholesky_params" { batch: u32, n: u32, upper: u32 }
}

static TILE: Source = Source {
    file: "cholesky/tile.metal",
    body: concat!(include_str!("steps.metal"), include_str!("tile.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BLOCKED: Source = Source {
    file: "cholesky/blocked.metal",
    body: concat!(include_str!("steps.metal"), include_str!("blocked.metal")),
    declarations: &[Sizes::DECLARATION],
};

/// How a call is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// A matrix in registers, a row a thread.
    Tile { room: u32, mats: u32 },
    /// A group for each matrix, which is in device memory.
    Blocked,
}

/// Rows that registers have room for.
const ROOMS: [u32; 4] = [16, 32, 64, 128];
/// Threads of a group of matrices that take one simd group at most.
const THREADS: u32 = 128;

impl Plan {
    fn new(problem: &Cholesky) -> Plan {
        // A row of 128 numbers is half of a thread's registers, in float64 all of them.
        let most = if problem.dtype == DType::F64 { 64 } else { 128 };
        match ROOMS.into_iter().find(|room| problem.n <= *room as usize && *room <= most) {
            Some(room) => Plan::Tile { room, mats: if room <= 32 { THREADS / room } else { 1 } },
            None => Plan::Blocked,
        }
    }

    fn spec(self, dtype: DType) -> Spec {
        let float64 = Define::Number("GK_F64", u32::from(dtype == DType::F64));
        match self {
            Plan::Tile { room, mats } => Spec {
                source: &TILE,
                entry: "cholesky_tile",
                threads: room * mats,
                defines: smallvec![
                    float64,
                    Define::Number("CHOLESKY_N", room),
                    Define::Number("CHOLESKY_MATS", mats),
                    // 64 x 65 numbers are the most that fit 32 KiB, and in float64 48 KiB.
                    Define::Number("CHOLESKY_KEEP", u32::from(room <= 64)),
                ],
            },
            Plan::Blocked => Spec {
                source: &BLOCKED,
                entry: "cholesky_blocked",
                threads: 256,
                defines: smallvec![float64, Define::Number("CHOLESKY_N", 32), Define::Number("CHOLESKY_KEEP", 1)],
            },
        }
    }
}

impl<D: Gpu> Run<Cholesky> for D {
    fn run(&self, problem: &Cholesky, args: Args<'_, Self::Buffer>) -> Result<()> {
        if problem.batch == 0 {
            return Ok(());
        }
        let plan = Plan::new(problem);
        let groups = match plan {
            Plan::Tile { mats, .. } => problem.batch.div_ceil(mats as usize),
            Plan::Blocked => problem.batch,
        };
        let sizes = Sizes {
            batch: problem.batch as u32,
            n: problem.n as u32,
            upper: u32::from(problem.triangle == Triangle::Upper),
        };
        let [a, l, info] = [args.a, args.l, args.info].map(Arg::Buffer);
        self.launch(&plan.spec(problem.dtype), groups, &[a, l, info, Arg::Params(&sizes.words())])
    }
}

/// The specialisations that plans choose.
pub(crate) fn units() -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for dtype in [DType::F32, DType::F64] {
        for n in [16, 32, 64, 128, 129] {
            let problem = Cholesky { batch: 1, n, triangle: Triangle::Lower, dtype };
            let spec = Plan::new(&problem).spec(dtype);
            if units.iter().all(|unit| *unit.spec() != spec) {
                units.push(Unit::everywhere(spec));
            }
        }
    }
    units
}
