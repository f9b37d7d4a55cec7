//! GPU form of embedding_bag: which specialisations, how many groups.

use super::{Backward, BackwardArgs, EmbeddingBag, Forward, ForwardArgs, Mode, OP};
use crate::device::Run;
use crate::device::gpu::rows::rows_text;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::{Error, Result};
use crate::kernels::Unit;
use crate::{DType, Index, params};
use smallvec::smallvec;

params! {
    /// Sizes and options. A group has 2^lane_bits threads along the columns, and `tiles` groups share a row.
    Sizes as "embedding_bag_params" {
        rows: u32, cols: u32, entries: u32, bags: u32, offsets: u32, padding: u32, tiles: u32, lane_bits: u32, wide: u32,
        mean: u32, max: u32, weighted: u32,
    }
}

static FORWARD: Source = Source {
    file: "embedding_bag/forward.metal",
    body: concat!(rows_text!(), include_str!("bag.metal"), include_str!("forward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static SEGMENTS: Source = Source {
    file: "embedding_bag/segments.metal",
    body: concat!(rows_text!(), include_str!("bag.metal"), include_str!("segments.metal")),
    declarations: &[Sizes::DECLARATION],
};
static BACKWARD: Source = Source {
    file: "embedding_bag/backward.metal",
    body: concat!(rows_text!(), include_str!("bag.metal"), include_str!("backward.metal")),
    declarations: &[Sizes::DECLARATION],
};
static MAXIMUM: Source = Source {
    file: "embedding_bag/maximum.metal",
    body: concat!(rows_text!(), include_str!("bag.metal"), include_str!("maximum.metal")),
    declarations: &[Sizes::DECLARATION],
};
static SAMPLES: Source = Source {
    file: "embedding_bag/samples.metal",
    body: concat!(rows_text!(), include_str!("bag.metal"), include_str!("samples.metal")),
    declarations: &[Sizes::DECLARATION],
};

const THREADS: u32 = 256;
/// Rows of the gradient that a slot of threads takes: BAG_ROWS of backward.metal.
const ROWS: usize = 4;

/// Elements of a chunk: 16 bytes, or 32 of float64.
fn widest(dtype: DType) -> usize {
    if dtype.size() == 2 { 8 } else { 4 }
}

fn vec(bag: &EmbeddingBag, aligned: bool) -> usize {
    let widest = widest(bag.dtype);
    if aligned && bag.cols.is_multiple_of(widest) { widest } else { 1 }
}

fn spec(source: &'static Source, entry: &'static str, dtype: DType, vec: usize, max: bool) -> Spec {
    // 1024 threads on a multiprocessor, each with 4 chunks under way, are what hides the latency of an H200's memory. Sums
    // of eight columns and what they lost need more registers than so many threads have; the gradient is mostly written.
    let groups = if dtype == DType::F64 || (entry == "embedding_bag_bwd" && vec == 8) { 2 } else { 4 };
    Spec {
        source,
        entry,
        threads: THREADS,
        defines: smallvec![
            Define::Number("GK_F64", u32::from(dtype == DType::F64)),
            Define::Word("ROW_T", dtype.kernel_word()),
            Define::Number("ROW_TPR", THREADS),
            Define::Number("ROW_ROWS", 1),
            Define::Number("ROW_VEC", vec as u32),
            Define::Number("ROW_V", 1),
            Define::Number("BAG_MAX", u32::from(max)),
            Define::Number("GK_MIN_GROUPS", groups),
        ],
    }
}

fn forward_spec(dtype: DType, vec: usize, max: bool) -> Spec {
    spec(&FORWARD, if max { "embedding_bag_max" } else { "embedding_bag_fwd" }, dtype, vec, max)
}
fn segments_spec(dtype: DType) -> Spec {
    spec(&SEGMENTS, "embedding_bag_segments", dtype, 1, false)
}
fn backward_spec(dtype: DType, vec: usize) -> Spec {
    spec(&BACKWARD, "embedding_bag_bwd", dtype, vec, false)
}
fn maximum_spec(dtype: DType, vec: usize, begin: bool) -> Spec {
    let mut spec =
        spec(&MAXIMUM, if begin { "embedding_bag_max_begin" } else { "embedding_bag_max_bwd" }, dtype, vec, true);
    spec.defines.push(Define::Number("BAG_BEGIN", u32::from(begin)));
    spec
}
fn samples_spec(dtype: DType, vec: usize) -> Spec {
    spec(&SAMPLES, "embedding_bag_bwd_samples", dtype, vec, false)
}

fn sizes(bag: &EmbeddingBag, vec: usize, weighted: bool) -> Sizes {
    // From the row alone and not from its alignment: the order of sums, and so the bits, are the same for a view.
    let lanes = bag.cols.div_ceil(widest(bag.dtype)).next_power_of_two().min(64);
    Sizes {
        rows: bag.rows as u32,
        cols: bag.cols as u32,
        entries: bag.entries as u32,
        bags: bag.bags as u32,
        offsets: bag.offsets as u32,
        padding: bag.padding.map_or(u32::MAX, |row| row as u32),
        tiles: bag.cols.div_ceil(lanes * vec) as u32,
        lane_bits: lanes.ilog2(),
        wide: u32::from(bag.index == Index::I64),
        mean: u32::from(bag.mode == Mode::Mean),
        max: u32::from(bag.mode == Mode::Max),
        weighted: u32::from(weighted),
    }
}

fn launch<D: Gpu>(device: &D, spec: &Spec, groups: usize, buffers: &[&D::Buffer], sizes: &Sizes) -> Result<()> {
    if groups > i32::MAX as usize {
        return Err(Error::Unsupported { op: OP, reason: format!("{groups} groups of threads: more than 2^31") });
    }
    let words = sizes.words();
    let list: Vec<_> = buffers.iter().copied().map(Arg::Buffer).chain([Arg::Params(&words)]).collect();
    device.launch(spec, groups, &list)
}

impl<D: Gpu> Run<Forward> for D {
    fn run(&self, Forward(bag): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        if bag.bags == 0 {
            return Ok(());
        }
        let vec = vec(bag, self.aligned(args.weight, 16) && self.aligned(args.y, 16));
        let mut sizes = sizes(bag, vec, args.samples.is_some());
        sizes.tiles = sizes.tiles.max(1); // of an empty row, for the scale
        let samples = args.samples.unwrap_or(args.weight);
        let mut list = vec![args.weight, args.indices, args.offsets, samples, args.y, args.scale];
        list.extend(args.largest);
        let groups = bag.bags * sizes.tiles as usize;
        launch(self, &forward_spec(bag.dtype, vec, bag.mode == Mode::Max), groups, &list, &sizes)
    }
}

/// The gradient of the weight, row by row, from the sorted indices.
fn of_segments<D: Gpu>(
    device: &D,
    bag: &EmbeddingBag,
    args: &BackwardArgs<'_, D::Buffer>,
    (keys, order): (&D::Buffer, &D::Buffer),
    dw: &D::Buffer,
) -> Result<()> {
    let real = bag.dtype.compute().size();
    let (starts, bags) = (device.alloc((bag.rows + 1) * 4)?, device.alloc(bag.entries.max(1) * 4)?);
    let (factors, places) = (device.alloc(bag.entries.max(1) * real)?, device.alloc(bag.entries.max(1) * 4)?);
    let samples = args.samples.unwrap_or(args.dy);
    let list = [keys, order, args.offsets, samples, args.scale, &starts, &bags, &factors, &places];
    let groups = (bag.rows + 1).max(bag.entries).div_ceil(THREADS as usize);
    launch(device, &segments_spec(bag.dtype), groups, &list, &sizes(bag, 1, args.samples.is_some()))?;
    let vec = vec(bag, device.aligned(args.dy, 16) && device.aligned(dw, 16));
    let sizes = sizes(bag, vec, false);
    let list = [args.dy, &starts, &bags, &factors, &places, args.largest.unwrap_or(&starts), dw];
    let rows = (THREADS as usize >> sizes.lane_bits) * ROWS;
    launch(device, &backward_spec(bag.dtype, vec), bag.rows.div_ceil(rows) * sizes.tiles as usize, &list, &sizes)
}

/// That of a maximum, from where the maxima are.
fn of_maxima<D: Gpu>(
    device: &D,
    bag: &EmbeddingBag,
    args: &BackwardArgs<'_, D::Buffer>,
    largest: &D::Buffer,
    dw: &D::Buffer,
) -> Result<()> {
    let maxima = bag.bags * bag.cols;
    let rows = device.alloc(maxima.max(1) * 4)?;
    let vec = vec(bag, device.aligned(dw, 16));
    let sizes = sizes(bag, vec, false);
    let groups = (bag.rows * bag.cols / vec).max(maxima).div_ceil(THREADS as usize);
    let list = [args.indices, args.scale, largest, &rows, dw];
    launch(device, &maximum_spec(bag.dtype, vec, true), groups, &list, &sizes)?;
    if maxima == 0 {
        return Ok(());
    }
    let list = [args.dy, &rows, dw];
    launch(device, &maximum_spec(bag.dtype, 1, false), maxima.div_ceil(THREADS as usize), &list, &sizes)
}

impl<D: Gpu> Run<Backward> for D {
    fn run(&self, Backward(bag): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        if let (Some(dw), false) = (args.dw, bag.rows == 0 || bag.cols == 0) {
            match (args.sorted, args.largest) {
                (Some(sorted), _) => of_segments(self, bag, &args, sorted, dw)?,
                (None, Some(largest)) => of_maxima(self, bag, &args, largest, dw)?,
                (None, None) => {
                    let expected = "the indices sorted, of a sum or a mean".to_owned();
                    return Err(Error::Argument { op: OP, argument: "keys", got: "none".to_owned(), expected });
                }
            }
        }
        if let (Some((weight, d_samples)), false) = (args.d_samples, bag.entries == 0) {
            let vec = vec(bag, self.aligned(args.dy, 16) && self.aligned(weight, 16));
            let list = [args.dy, weight, args.indices, args.offsets, args.scale, d_samples];
            let groups = bag.entries.div_ceil(THREADS as usize / 32);
            launch(self, &samples_spec(bag.dtype, vec), groups, &list, &sizes(bag, vec, false))?;
        }
        Ok(())
    }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let mut specs = Vec::new();
    for dtype in DType::ALL {
        specs.extend([segments_spec(dtype), maximum_spec(dtype, 1, false)]);
        for vec in [widest(dtype), 1] {
            specs.extend([forward_spec(dtype, vec, false), forward_spec(dtype, vec, true)]);
            specs.extend([backward_spec(dtype, vec), samples_spec(dtype, vec), maximum_spec(dtype, vec, true)]);
        }
    }
    specs.into_iter().map(Unit::everywhere).collect()
}
