//! # rope
//! The rotary position embedding of queries and keys, split-half: with x1, x2 the halves of a head,
//! y1 = x1 c1 - x2 s1, y2 = x2 c2 + x1 s2, where c, s are the rows of two tables at the head's position.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | q, k, y | (B, S, H, D) or (B, H, S, D), each its own H | float32, float16, bfloat16; float64 on cpu and cuda; one type |
//! | cos, sin | (P, w) or (B or 1, S, w), w = D / 2 or D | one type, float64 only with float64 |
//! | position_ids | (S) or (B or 1, S), int32 or int64 | rows of a table (P, w); without them row s |
//!
//! Tables of width D / 2 hold c1 = c2 and s1 = s2; those of width D hold them one after the other.
//!
//! **Gradient**: dx1 = dy1 c1 + dy2 s2, dx2 = dy2 c2 - dy1 s1: the transposed rotation, whose gradient is the rotation.
//!
//! **Rounding**: products and sums in float32 (float64 for float64), one of the two products fused; y rounded once.
//!
//! **Error**: |y1 - exact| <= rho |y1| + 4 w (|x1 c1| + |x2 s1|), likewise y2.
//!
//! **Cost**: q and k are read once, in place where the elements of a head lie side by side, and y is written once: bound
//! by memory. One launch; no host read. A position that the table does not have is an error on the host and gives NaN on
//! a GPU.
//!
//! **Source**: Su et al., arXiv 2104.09864, in the arrangement of GPT-NeoX.

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::cpu::{self as cpu_device, Cpu};
use crate::device::{Problem, Run};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, with_dtype};

/// Order of the two middle dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (B, H, S, D).
    HeadsFirst,
    /// (B, S, H, D).
    PositionsFirst,
}

/// Which way to rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the tables' angles.
    Forward,
    /// The transposed rotation.
    Backward,
}

/// Distances between elements of a tensor that is read in place; those of a head are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// From one batch item to the next.
    pub batch: usize,
    /// From one position to the next.
    pub position: usize,
    /// From one head to the next.
    pub head: usize,
}

/// Some heads of each position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// How many.
    pub count: usize,
    /// Where they lie in the input. The output is contiguous.
    pub strides: Strides,
}

/// What is known of cos and sin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Type of both.
    pub dtype: DType,
    /// Positions of a table.
    pub positions: usize,
    /// Whether a row has the width of a head, else half of it.
    pub full: bool,
    /// Whether each batch item has its own.
    pub batched: bool,
}

/// What is known of position_ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// 4 or 8.
    pub bytes: usize,
    /// Whether each batch item has its own.
    pub batched: bool,
}

/// A checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rope {
    /// Batch items.
    pub batch: usize,
    /// Positions.
    pub seq: usize,
    /// Elements of a head.
    pub width: usize,
    /// Order of dimensions, of inputs and outputs.
    pub layout: Layout,
    /// Those of q.
    pub q: Heads,
    /// Those of k, if there is one.
    pub k: Option<Heads>,
    /// Type of q, k and the results.
    pub dtype: DType,
    /// The tables.
    pub table: Table,
    /// The positions, if they are given.
    pub ids: Option<Ids>,
    /// Which way.
    pub direction: Direction,
}

/// Tensors of a call: contiguous, but for q and k.
pub struct Args<'a, B> {
    /// As the problem says.
    pub q: &'a B,
    /// Present as the problem says.
    pub k: Option<&'a B>,
    /// Cosines.
    pub cos: &'a B,
    /// Sines.
    pub sin: &'a B,
    /// Present as the problem says.
    pub position_ids: Option<&'a B>,
    /// The shape of q.
    pub q_out: &'a B,
    /// The shape of k.
    pub k_out: Option<&'a B>,
}

impl Problem for Rope {
    type Args<'a, B: 'a> = Args<'a, B>;
}

/// A tensor as [`Rope::new`] looks at it.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// Sizes.
    pub shape: &'a [usize],
    /// Distances between elements, in elements.
    pub strides: &'a [usize],
    /// Element type.
    pub dtype: DType,
}

impl Rope {
    /// Checks shapes and types. `ids` are the shape of position_ids and the bytes of one. Errors call the operation
    /// rope_fwd, or rope_forward where there is no k and q is its x.
    pub fn new(
        q: Operand<'_>,
        k: Option<Operand<'_>>,
        [cos, sin]: [(&[usize], DType); 2],
        ids: Option<(&[usize], usize)>,
        layout: Layout,
        direction: Direction,
    ) -> Result<Rope> {
        let (op, first) = if k.is_some() { ("rope_fwd", "q") } else { ("rope_forward", "x") };
        let [batch, second, third, width] = *q.shape else {
            return Err(Error::argument(op, first, shape(q.shape), "4 dimensions"));
        };
        if !width.is_multiple_of(2) {
            return Err(Error::argument(op, first, shape(q.shape), "an even last size"));
        }
        let (count, seq) = if layout == Layout::HeadsFirst { (second, third) } else { (third, second) };
        let heads = |operand: Operand<'_>, count| {
            let (position, head) = if layout == Layout::HeadsFirst { (2, 1) } else { (1, 2) };
            let [batch, position, head] = [0, position, head].map(|dim| operand.strides[dim]);
            Heads { count, strides: Strides { batch, position, head } }
        };
        let k = match k {
            None => None,
            Some(k) => {
                let head = if layout == Layout::HeadsFirst { 1 } else { 2 };
                let fits = k.shape.len() == 4 && (0..4).all(|dim| dim == head || k.shape[dim] == q.shape[dim]);
                if !fits {
                    let expected = format!("{} but for the number of heads", shape(q.shape));
                    return Err(Error::argument(op, "k", shape(k.shape), expected));
                }
                if k.dtype != q.dtype {
                    let (got, expected) = (k.dtype.to_string(), q.dtype.to_string());
                    return Err(Error::DType { op, argument: "k", got, expected });
                }
                Some(heads(k, k.shape[head]))
            }
        };
        let table = Rope::table(op, (batch, seq, width, q.dtype), cos, sin, ids.is_some())?;
        let ids = match ids {
            None => None,
            Some((ids, bytes)) => match *ids {
                [s] if s == seq => Some(Ids { bytes, batched: false }),
                [b, s] if s == seq && (b == batch || b == 1) => Some(Ids { bytes, batched: b == batch && b != 1 }),
                _ => {
                    let expected = format!("shape [{seq}] or [{batch}, {seq}]");
                    return Err(Error::argument(op, "position_ids", shape(ids), expected));
                }
            },
        };
        Ok(Rope { batch, seq, width, layout, q: heads(q, count), k, dtype: q.dtype, table, ids, direction })
    }

    fn table(
        op: &'static str,
        (batch, seq, width, dtype): (usize, usize, usize, DType),
        (cos, cos_dtype): (&[usize], DType),
        (sin, sin_dtype): (&[usize], DType),
        ids: bool,
    ) -> Result<Table> {
        if sin != cos {
            return Err(Error::argument(op, "sin", shape(sin), format!("{}, as cos", shape(cos))));
        }
        if sin_dtype != cos_dtype {
            let (got, expected) = (sin_dtype.to_string(), format!("{cos_dtype}, as cos"));
            return Err(Error::DType { op, argument: "sin", got, expected });
        }
        if cos_dtype == DType::F64 && dtype != DType::F64 {
            let expected = format!("float32, float16 or bfloat16 for {dtype}");
            return Err(Error::DType { op, argument: "cos", got: cos_dtype.to_string(), expected });
        }
        let batched = match *cos {
            [positions, _] if ids || positions >= seq => false,
            [b, s, _] if !ids && s == seq && (b == batch || b == 1) => b == batch && b != 1,
            _ => {
                let expected = match ids {
                    true => "2 dimensions, from which position_ids pick rows".to_owned(),
                    false => format!("at least {seq} rows, or {batch} times {seq}"),
                };
                return Err(Error::argument(op, "cos", shape(cos), expected));
            }
        };
        let full = match cos[cos.len() - 1] {
            w if w == width => true,
            w if w == width / 2 => false,
            _ => {
                let expected = format!("a last size of {} or {width}", width / 2);
                return Err(Error::argument(op, "cos", shape(cos), expected));
            }
        };
        Ok(Table { dtype: cos_dtype, positions: cos[cos.len() - 2], full, batched })
    }

    /// Elements of cos.
    fn table_len(&self) -> usize {
        let tables = if self.table.batched { self.batch } else { 1 };
        tables * self.table.positions * self.table_width()
    }

    fn table_width(&self) -> usize {
        if self.table.full { self.width } else { self.width / 2 }
    }

    /// Number of position_ids.
    fn ids_len(&self) -> usize {
        self.ids.map_or(0, |ids| if ids.batched { self.batch * self.seq } else { self.seq })
    }

    /// Elements of a result.
    fn numel(&self, heads: Heads) -> usize {
        self.batch * self.seq * heads.count * self.width
    }

    /// Elements from the first of an input to behind the last.
    fn span(&self, heads: Heads) -> usize {
        if self.numel(heads) == 0 {
            return 0;
        }
        let Strides { batch, position, head } = heads.strides;
        (self.batch - 1) * batch + (self.seq - 1) * position + (heads.count - 1) * head + self.width
    }
}

fn shape(sizes: &[usize]) -> String {
    format!("shape {sizes:?}")
}

impl Run<Rope> for Cpu {
    fn run(&self, problem: &Rope, args: Args<'_, Self::Buffer>) -> Result<()> {
        // SAFETY: the caller's buffer has the size of the problem; integers of any bits are values.
        let positions = args.position_ids.zip(problem.ids).map(|(ids, Ids { bytes, .. })| unsafe {
            let len = problem.ids_len();
            match bytes {
                8 => cpu::positions(problem, ids.slice::<i64>(len).iter().copied()),
                _ => cpu::positions(problem, ids.slice::<i32>(len).iter().map(|id| i64::from(*id))),
            }
        });
        let positions = positions.transpose()?;
        with_dtype!(problem.dtype, T => with_dtype!(problem.table.dtype, W => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
            unsafe {
                let k = problem.k.zip(args.k.zip(args.k_out)).map(|(heads, (x, y))| part(problem, heads, x, y));
                let parts = [Some(part(problem, problem.q, args.q, args.q_out)), k];
                let table = [args.cos, args.sin].map(|t| t.slice::<W>(problem.table_len()));
                cpu::rope::<T, W>(self.threads(), problem, parts, table, positions.as_deref());
            }
        }));
        Ok(())
    }
}

/// # Safety
/// The buffers have the sizes of the problem, and nobody else touches the second.
unsafe fn part<'a, T>(
    problem: &Rope,
    heads: Heads,
    x: &'a cpu_device::Buffer,
    y: &'a cpu_device::Buffer,
) -> cpu::Part<'a, T> {
    // SAFETY: the caller's promise.
    unsafe { cpu::Part { heads, x: x.slice(problem.span(heads)), y: y.slice_mut(problem.numel(heads)) } }
}

/// The rotated q and k; contiguous tensors, rows of the tables in order of positions.
pub fn rope<D: Run<Rope>>(
    q: View<'_, D>,
    k: Option<View<'_, D>>,
    cos: View<'_, D>,
    sin: View<'_, D>,
    layout: Layout,
    direction: Direction,
) -> Result<(Tensor<D>, Option<Tensor<D>>)> {
    let strides = |shape: &[usize]| -> Vec<usize> {
        (0..shape.len()).map(|dim| shape[dim + 1..].iter().product::<usize>()).collect()
    };
    let (q_strides, k_strides) = (strides(q.shape), k.map(|k| strides(k.shape)).unwrap_or_default());
    let problem = Rope::new(
        Operand { shape: q.shape, strides: &q_strides, dtype: q.dtype },
        k.map(|k| Operand { shape: k.shape, strides: &k_strides, dtype: k.dtype }),
        [(cos.shape, cos.dtype), (sin.shape, sin.dtype)],
        None,
        layout,
        direction,
    )?;
    let q_out = Tensor::empty(q.device, q.shape, q.dtype)?;
    let k_out = k.map(|k| Tensor::empty(k.device, k.shape, k.dtype)).transpose()?;
    let args = Args {
        q: q.buffer,
        k: k.map(|k| k.buffer),
        cos: cos.buffer,
        sin: sin.buffer,
        position_ids: None,
        q_out: q_out.buffer(),
        k_out: k_out.as_ref().map(Tensor::buffer),
    };
    q.device.run(&problem, args)?;
    Ok((q_out, k_out))
}
