//! metalcore::embedding_bag_fwd, embedding_bag_bwd.

use crate::host::Host;
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::embedding_bag::{Backward, BackwardArgs, EmbeddingBag, Forward, ForwardArgs, Mode};
use metalcore::{DType, Error, Index, Result};

/// `mode`: 0 sum, 1 mean, 2 max; `padding_idx` -1: none. `largest` is empty but for a maximum. The backward operator takes
/// the indices sorted (`keys`), and where each was (`order`); they may be empty without `weight_grad`, and on a GPU for a
/// maximum. The weight is needed for `samples_grad` alone. What is not asked for is returned empty.
pub const OPERATORS: &[Operator] = &[
    operator!(embedding_bag_fwd: "(Tensor weight, Tensor indices, Tensor offsets, Tensor? per_sample_weights, int mode, bool include_last_offset, int padding_idx) -> (Tensor y, Tensor scale, Tensor largest)"),
    operator!(embedding_bag_bwd: "(Tensor dy, Tensor? weight, Tensor indices, Tensor offsets, Tensor? per_sample_weights, Tensor scale, Tensor largest, Tensor keys, Tensor order, int num_weights, int mode, bool include_last_offset, int padding_idx, bool weight_grad, bool samples_grad) -> (Tensor, Tensor)"),
];

const OP: &str = "embedding_bag";

fn problem<H: Host>(
    host: &H,
    weight: (&[usize], DType),
    indices: &H::Tensor,
    offsets: &H::Tensor,
    mode: i64,
    include_last: bool,
    padding: i64,
) -> Result<EmbeddingBag> {
    let mode = match mode {
        0 => Mode::Sum,
        1 => Mode::Mean,
        2 => Mode::Max,
        other => {
            let (got, expected) = (other.to_string(), "0, 1 or 2".to_owned());
            return Err(Error::Argument { op: OP, argument: "mode", got, expected });
        }
    };
    let index = host.known_index(OP, "indices", indices)?;
    let got = host.known_index(OP, "offsets", offsets)?;
    if got != index {
        let name = |index| if index == Index::I32 { "int32" } else { "int64" }.to_owned();
        return Err(Error::DType { op: OP, argument: "offsets", got: name(got), expected: name(index) });
    }
    let (indices, offsets) = (host.shape(indices), host.shape(offsets));
    EmbeddingBag::new(weight, (&indices, index), &offsets, mode, include_last, padding)
}

/// `check_same` for indices.
fn same_index<H: Host>(
    host: &H,
    argument: &'static str,
    tensor: &H::Tensor,
    shape: &[usize],
    index: Index,
) -> Result<()> {
    host.check_place(OP, argument, tensor)?;
    let got = host.shape(tensor);
    if got != shape || host.known_index(OP, argument, tensor)? != index {
        let (got, expected) = (format!("shape {got:?}"), format!("shape {shape:?} of {index:?}"));
        return Err(Error::Argument { op: OP, argument, got, expected });
    }
    Ok(())
}

fn embedding_bag_fwd<H: Host>(
    host: &H,
    weight: H::Tensor,
    indices: H::Tensor,
    offsets: H::Tensor,
    samples: Option<H::Tensor>,
    mode: i64,
    include_last_offset: bool,
    padding_idx: i64,
) -> Result<(H::Tensor, H::Tensor, H::Tensor)>
where
    H::Device: Run<Forward>,
{
    host.check_place(OP, "indices", &indices)?;
    host.check_place(OP, "offsets", &offsets)?;
    let (shape, dtype) = (host.shape(&weight), host.known_dtype(OP, "weight", &weight)?);
    let bag = problem(host, (&shape, dtype), &indices, &offsets, mode, include_last_offset, padding_idx)?;
    if let Some(samples) = &samples {
        host.check_same(OP, ("per_sample_weights", samples), (&[bag.entries], dtype))?;
    }
    let [weight, indices, offsets] = [host.contiguous(weight)?, host.contiguous(indices)?, host.contiguous(offsets)?];
    let samples = samples.map(|samples| host.contiguous(samples)).transpose()?;
    let (y, scale) = (host.empty(&[bag.bags, bag.cols], dtype)?, host.empty(&[bag.bags], dtype.compute())?);
    let max = bag.mode == Mode::Max;
    let largest = host.empty_index(&if max { vec![bag.bags, bag.cols] } else { vec![0] }, Index::I32)?;
    let [weight_buffer, indices_buffer, offsets_buffer, y_buffer, scale_buffer, largest_buffer] =
        [&weight, &indices, &offsets, &y, &scale, &largest].map(|tensor| host.buffer(tensor));
    let samples_buffer = samples.as_ref().map(|samples| host.buffer(samples));
    let args = ForwardArgs {
        weight: &weight_buffer,
        indices: &indices_buffer,
        offsets: &offsets_buffer,
        samples: samples_buffer.as_ref(),
        y: &y_buffer,
        scale: &scale_buffer,
        largest: max.then_some(&largest_buffer),
    };
    host.device().run(&Forward(bag), args)?;
    Ok((y, scale, largest))
}

fn embedding_bag_bwd<H: Host>(
    host: &H,
    dy: H::Tensor,
    weight: Option<H::Tensor>,
    indices: H::Tensor,
    offsets: H::Tensor,
    samples: Option<H::Tensor>,
    scale: H::Tensor,
    largest: H::Tensor,
    keys: H::Tensor,
    order: H::Tensor,
    num_weights: i64,
    mode: i64,
    include_last_offset: bool,
    padding_idx: i64,
    weight_grad: bool,
    samples_grad: bool,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Backward>,
{
    host.check_place(OP, "indices", &indices)?;
    host.check_place(OP, "offsets", &offsets)?;
    let dtype = host.known_dtype(OP, "dy", &dy)?;
    let cols = host.shape(&dy).get(1).copied().unwrap_or_default();
    let rows = usize::try_from(num_weights).unwrap_or_default();
    let bag = problem(host, (&[rows, cols], dtype), &indices, &offsets, mode, include_last_offset, padding_idx)?;
    host.check_same(OP, ("dy", &dy), (&[bag.bags, cols], dtype))?;
    host.check_same(OP, ("scale", &scale), (&[bag.bags], dtype.compute()))?;
    if let Some(samples) = &samples {
        host.check_same(OP, ("per_sample_weights", samples), (&[bag.entries], dtype))?;
    }
    let max = bag.mode == Mode::Max;
    let per_bag = [bag.bags, cols];
    same_index(host, "largest", &largest, if max { &per_bag } else { &[0] }, Index::I32)?;
    let sorted = weight_grad && (bag.entries == 0 || host.shape(&keys) != [0]);
    if sorted {
        same_index(host, "keys", &keys, &[bag.entries], bag.index)?;
        same_index(host, "order", &order, &[bag.entries], Index::I64)?;
    }
    let weight = match (samples_grad, weight) {
        (false, _) => None,
        (true, Some(weight)) => {
            host.check_same(OP, ("weight", &weight), (&[rows, cols], dtype))?;
            Some(host.contiguous(weight)?)
        }
        (true, None) => {
            let (got, expected) = ("None".to_owned(), "the weight, for the gradient of the samples".to_owned());
            return Err(Error::Argument { op: OP, argument: "weight", got, expected });
        }
    };
    let [dy, indices, offsets] = [host.contiguous(dy)?, host.contiguous(indices)?, host.contiguous(offsets)?];
    let [scale, largest] = [host.contiguous(scale)?, host.contiguous(largest)?];
    let [keys, order] = [host.contiguous(keys)?, host.contiguous(order)?];
    let samples = samples.map(|samples| host.contiguous(samples)).transpose()?;
    let dw = host.empty(&if weight_grad { vec![rows, cols] } else { vec![0] }, dtype)?;
    let d_samples = host.empty(&[if samples_grad { bag.entries } else { 0 }], dtype)?;
    let [dy_buffer, indices_buffer, offsets_buffer, scale_buffer, largest_buffer] =
        [&dy, &indices, &offsets, &scale, &largest].map(|tensor| host.buffer(tensor));
    let [keys_buffer, order_buffer, dw_buffer, d_samples_buffer] =
        [&keys, &order, &dw, &d_samples].map(|tensor| host.buffer(tensor));
    let samples_buffer = samples.as_ref().map(|samples| host.buffer(samples));
    let weight_buffer = weight.as_ref().map(|weight| host.buffer(weight));
    let args = BackwardArgs {
        dy: &dy_buffer,
        indices: &indices_buffer,
        offsets: &offsets_buffer,
        samples: samples_buffer.as_ref(),
        scale: &scale_buffer,
        largest: max.then_some(&largest_buffer),
        sorted: sorted.then_some((&keys_buffer, &order_buffer)),
        dw: weight_grad.then_some(&dw_buffer),
        d_samples: weight_buffer.as_ref().map(|weight| (weight, &d_samples_buffer)),
    };
    host.device().run(&Backward(bag), args)?;
    Ok((dw, d_samples))
}
