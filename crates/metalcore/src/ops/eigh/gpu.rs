//! GPU form of eigh: which kernel, which specialisation, how many groups.

use super::{Args, Eigh, Form, OP, Strategy, Triangle};
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::device::{Caps, Run};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// Sizes of one call, and where a matrix has its parts in `work`.
    Sizes as "eigh_params" {
        batch: u32, n: u32, upper: u32, vectors: u32, lda: u32, ldq: u32, stride: u32, v0: u32,
        part: u32, nodes: u32, old: u32, row_tiles: u32, col_tiles: u32,
    }
}

static JACOBI_SOURCE: Source = Source {
    file: "eigh/jacobi.metal",
    body: concat!(
        include_str!("eigen.metal"),
        include_str!("../../device/gpu/prelude/rotation.h"),
        include_str!("jacobi.metal")
    ),
    declarations: &[Sizes::DECLARATION],
};

macro_rules! conquer {
    ($name:ident, $file:literal) => {
        static $name: Source = Source {
            file: concat!("eigh/", $file),
            body: concat!(include_str!("eigen.metal"), include_str!("conquer.metal"), include_str!($file)),
            declarations: &[Sizes::DECLARATION],
        };
    };
}
conquer!(TRIDIAGONAL, "tridiagonal.metal");
conquer!(MERGE, "merge.metal");
conquer!(JOIN, "join.metal");
conquer!(BACK, "back.metal");

/// Where a matrix of Jacobi's method is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Near,
    Far,
}

/// How Jacobi's method is executed: room for this many rows, threads of a matrix, matrices of a group, where A and Q are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Jacobi {
    room: u32,
    threads: u32,
    mats: u32,
    a: Place,
    q: Place,
}

/// Rows, threads, matrices of a group: a thread for each pair of pairs of rows.
const JACOBI: [(u32, u32, u32); 5] = [(16, 32, 4), (24, 96, 1), (32, 128, 1), (48, 288, 1), (64, 512, 1)];
/// Sweeps after which a matrix is given up; 5 to 10 are usual.
const SWEEPS: u32 = 40;

impl Jacobi {
    fn new(n: usize, form: Form, dtype: DType, caps: &Caps) -> Jacobi {
        let Some((room, threads, mats)) = JACOBI.into_iter().find(|(room, ..)| n <= *room as usize) else {
            return Jacobi { room: 1024, threads: 512, mats: 1, a: Place::Far, q: Place::Far };
        };
        let size = dtype.size() as u32;
        let (a, v) = (room * (room + 1) * size * mats, room * (room.next_multiple_of(4) + 4) * size * mats);
        let rest = mats * room * (2 * size + 4) + threads / 32 * (size + 4) + 64;
        let both = a + v + rest <= caps.threadgroup_bytes as u32;
        // Values alone need no Q, which is then the same text with Q where it is not touched.
        let q = if both && form == Form::Vectors || room <= 32 { Place::Near } else { Place::Far };
        let a = if a + rest <= caps.threadgroup_bytes as u32 { Place::Near } else { Place::Far };
        Jacobi { room, threads, mats, a, q }
    }

    fn spec(&self, dtype: DType) -> Spec {
        let near = |place| u32::from(place == Place::Near);
        Spec {
            source: &JACOBI_SOURCE,
            entry: "eigh_jacobi",
            threads: self.threads * self.mats,
            defines: smallvec![
                float64(dtype),
                Number("EIGH_N", self.room),
                Number("EIGH_T", self.threads),
                Number("EIGH_MATS", self.mats),
                Number("EIGH_A_NEAR", near(self.a)),
                Number("EIGH_Q_NEAR", near(self.q)),
                Number("EIGH_SWEEPS", SWEEPS),
            ],
        }
    }
}

use Define::Number;

fn float64(dtype: DType) -> Define {
    Number("GK_F64", u32::from(dtype == DType::F64))
}

/// N up to which Jacobi's method is the faster.
const JACOBI_MOST: usize = 64;
/// N up to which the kernels of the tridiagonal method have room.
const TRIDIAGONAL_MOST: usize = 512;
/// Rows of a node of a merge, and the threads of its group: the first that fits is taken.
const MERGES: [(u32, u32); 2] = [(64, 128), (512, 1024)];
/// Rows of the tridiagonalisation, and its threads.
const TRIDIAGONALS: [(u32, u32); 2] = [(128, 512), (512, 1024)];
/// Rows and columns that a group of `eigh_join` forms.
const JOIN_TILE: (u32, u32) = (32, 64);
/// Vectors of `conquer.metal`.
const VECTORS: u32 = 12;

fn tridiagonal_spec(n: u32, dtype: DType) -> Spec {
    let (room, threads) = first_with_room(&TRIDIAGONALS, n);
    let threads = if dtype == DType::F64 { threads.min(512) } else { threads }; // more have too few registers
    let defines = smallvec![float64(dtype), Number("EIGH_T", threads), Number("EIGH_S", room)];
    Spec { source: &TRIDIAGONAL, entry: "eigh_tridiagonal", threads, defines }
}

fn merge_spec(size: u32, dtype: DType) -> Spec {
    let (room, threads) = first_with_room(&MERGES, size);
    // Bisection alone would need as many steps as there are bits; every eighth step is one.
    let steps = Number("EIGH_STEPS", if dtype == DType::F64 { 100 } else { 60 });
    let defines = smallvec![float64(dtype), Number("EIGH_T", threads), Number("EIGH_S", room), steps];
    Spec { source: &MERGE, entry: "eigh_merge", threads, defines }
}

fn join_spec(dtype: DType) -> Spec {
    Spec { source: &JOIN, entry: "eigh_join", threads: 128, defines: smallvec![float64(dtype)] }
}

fn back_spec(n: u32, dtype: DType) -> Spec {
    let chunks = [4, 8, 16].into_iter().find(|chunks| n <= 32 * chunks).expect("the plan has room");
    let defines = smallvec![float64(dtype), Number("EIGH_CHUNKS", chunks)];
    Spec { source: &BACK, entry: "eigh_back", threads: 256, defines }
}

/// The pair of the first entry that has room for `n`.
fn first_with_room(table: &[(u32, u32)], n: u32) -> (u32, u32) {
    table.iter().copied().find(|(room, _)| n <= *room).expect("the plan has room")
}

impl<D: Gpu> Run<Eigh> for D {
    fn run(&self, eigh: &Eigh, args: Args<'_, Self::Buffer>) -> Result<()> {
        if eigh.batch == 0 {
            return Ok(());
        }
        let most = if eigh.strategy == Strategy::Auto { JACOBI_MOST } else { 0 };
        let by_jacobi = eigh.n == 0
            || eigh.strategy == Strategy::Jacobi
            || eigh.n <= most
            || eigh.strategy == Strategy::Auto && eigh.n > TRIDIAGONAL_MOST;
        if by_jacobi {
            return jacobi(self, eigh, args);
        }
        if eigh.n > TRIDIAGONAL_MOST {
            let reason = format!("strategy 'tridiag' for N = {}, above {TRIDIAGONAL_MOST}", eigh.n);
            return Err(Error::Unsupported { op: OP, reason });
        }
        tridiagonal(self, eigh, args)
    }
}

fn jacobi<D: Gpu>(device: &D, eigh: &Eigh, args: Args<'_, D::Buffer>) -> Result<()> {
    let plan = Jacobi::new(eigh.n, eigh.form, eigh.dtype, device.caps());
    let even = (eigh.n as u32).next_multiple_of(2);
    let (lda, ldq) = (even + 1, even.next_multiple_of(4) + 4);
    let v0 = if plan.a == Place::Far { (even * lda).next_multiple_of(4) } else { 0 };
    let far_q = plan.q == Place::Far && eigh.form == Form::Vectors;
    let stride = v0 + if far_q { even * ldq } else { 0 };
    let sizes = Sizes { lda, ldq, stride, v0, ..Sizes::new(eigh) };
    let work = device.alloc((stride as usize * eigh.batch).max(4) * eigh.dtype.size())?;
    let [a, l, q, info, work] = [args.a, args.l, args.q, args.info, &work].map(Arg::Buffer);
    let groups = eigh.batch.div_ceil(plan.mats as usize);
    device.launch(&plan.spec(eigh.dtype), groups, &[a, l, q, info, work, Arg::Params(&sizes.words())])
}

/// Tridiagonalisation, two launches for each doubling of the nodes, and the way back.
fn tridiagonal<D: Gpu>(device: &D, eigh: &Eigh, args: Args<'_, D::Buffer>) -> Result<()> {
    let (n, dtype) = (eigh.n as u32, eigh.dtype);
    let ld = n.next_multiple_of(4);
    let stride = 3 * n * ld + VECTORS * ld;
    let work = device.alloc(stride as usize * eigh.batch * dtype.size())?;
    let work = || Arg::Buffer(&work);
    let mut sizes = Sizes { lda: ld, ldq: ld, stride, ..Sizes::new(eigh) };
    let list = [Arg::Buffer(args.a), Arg::Buffer(args.info), work(), Arg::Params(&sizes.words())];
    device.launch(&tridiagonal_spec(n, dtype), eigh.batch, &list)?;
    let mut half = 1;
    while half < n {
        sizes.part = half;
        sizes.nodes = n.div_ceil(2 * half);
        let size = n.min(2 * half);
        (sizes.row_tiles, sizes.col_tiles) = (size.div_ceil(JOIN_TILE.0), size.div_ceil(JOIN_TILE.1));
        let words = sizes.words();
        let nodes = eigh.batch * sizes.nodes as usize;
        device.launch(&merge_spec(size, dtype), nodes, &[work(), Arg::Params(&words)])?;
        let tiles = (sizes.row_tiles * sizes.col_tiles) as usize;
        device.launch(&join_spec(dtype), nodes * tiles, &[work(), Arg::Params(&words)])?;
        sizes.old = 1 - sizes.old;
        half *= 2;
    }
    let list = [Arg::Buffer(args.l), Arg::Buffer(args.q), work(), Arg::Params(&sizes.words())];
    device.launch(&back_spec(n, dtype), eigh.batch * eigh.n.div_ceil(32), &list)
}

impl Sizes {
    /// What a call has; the rest is 0.
    fn new(eigh: &Eigh) -> Sizes {
        Sizes {
            batch: eigh.batch as u32,
            n: eigh.n as u32,
            upper: u32::from(eigh.triangle == Triangle::Upper),
            vectors: u32::from(eigh.form == Form::Vectors),
            lda: 0,
            ldq: 0,
            stride: 0,
            v0: 0,
            part: 0,
            nodes: 0,
            old: 0,
            row_tiles: 0,
            col_tiles: 0,
        }
    }
}

/// The specialisations that plans choose, over sizes on both sides of every threshold.
pub(crate) fn units() -> Vec<Unit> {
    let metal = Caps { kind: "mps", threadgroup_bytes: 32768, units: 8, float64: false };
    let cuda = Caps { kind: "cuda", threadgroup_bytes: 49152, units: 132, float64: true };
    let mut units: Vec<Unit> = Vec::new();
    for (caps, dtype) in [(&metal, DType::F32), (&cuda, DType::F32), (&cuda, DType::F64)] {
        let jacobi = [16, 24, 32, 48, 64, 65].map(|n| Jacobi::new(n, Form::Vectors, dtype, caps).spec(dtype));
        let sizes = [64, 128, 256, 512];
        let mut specs = jacobi.to_vec();
        specs.extend(sizes.map(|n| tridiagonal_spec(n, dtype)));
        specs.extend(sizes.map(|n| merge_spec(n, dtype)));
        specs.extend(sizes.map(|n| back_spec(n, dtype)));
        specs.push(join_spec(dtype));
        for spec in specs {
            if units.iter().all(|unit| *unit.spec() != spec) {
                units.push(if caps.kind == "mps" { Unit::everywhere(spec) } else { Unit::cuda(spec) });
            }
        }
    }
    units
}
