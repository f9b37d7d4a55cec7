//! One body for every device. The bounds are those of CONTRACT 3.4.

use super::{Direction, Layout, Rope, reference, rope};
use crate::device::Run;
use crate::testing::{Random, bits, has_float64, wide};
use crate::{DType, Element, Tensor, each_device};
use half::{bf16, f16};

/// (batch, positions, heads of q, heads of k, width): around the heads of a thread, vectors, groups, chunks of the host.
const SIZES: [(usize, usize, usize, usize, usize); 8] = [
    (2, 3, 1, 1, 2),
    (1, 5, 4, 2, 6),
    (2, 7, 5, 3, 8),
    (1, 2, 9, 8, 16),
    (2, 33, 3, 1, 24),
    (1, 70, 12, 5, 80),
    (3, 1, 2, 2, 130),
    (1, 40, 4, 2, 256),
];

struct Case {
    size: (usize, usize, usize, usize, usize),
    layout: Layout,
    direction: Direction,
    full: bool,
    batched: bool,
}

fn check<T: Element, W: Element, D: Run<Rope>>(device: &D, case: &Case) {
    let (batch, seq, q_heads, k_heads, width) = case.size;
    let mut random = Random::new((seq * 31 + width) as u64);
    let row = if case.full { width } else { width / 2 };
    let tables = if case.batched { batch } else { 1 };
    let shape = |heads: usize| match case.layout {
        Layout::HeadsFirst => [batch, heads, seq, width],
        Layout::PositionsFirst => [batch, seq, heads, width],
    };
    let [q, k]: [Vec<T>; 2] = [q_heads, k_heads].map(|heads| random.normals(batch * seq * heads * width));
    let [cos, sin]: [Vec<W>; 2] = [(); 2].map(|()| random.normals(tables * seq * row));
    let table_shape = if case.batched { vec![batch, seq, row] } else { vec![seq, row] };
    let q_device = Tensor::from_slice(device, &q, &shape(q_heads)).unwrap();
    let k_device = Tensor::from_slice(device, &k, &shape(k_heads)).unwrap();
    let [cos_device, sin_device] = [&cos, &sin].map(|t| Tensor::from_slice(device, t, &table_shape).unwrap());
    let (q_out, k_out) =
        rope(q_device.view(), Some(k_device.view()), cos_device.view(), sin_device.view(), case.layout, case.direction)
            .unwrap();
    assert_eq!(bits(&q_device.to_vec::<T>().unwrap()), bits(&q), "q was changed");
    let (cos, sin) = (wide(&cos), wide(&sin));
    for (x, y, heads) in [(&q, q_out, q_heads), (&k, k_out.unwrap(), k_heads)] {
        let got: Vec<T> = y.to_vec().unwrap();
        for (index, (x, got)) in x.chunks(width).zip(got.chunks(width)).enumerate() {
            let (b, s) = match case.layout {
                Layout::HeadsFirst => (index / (heads * seq), index % seq),
                Layout::PositionsFirst => (index / (heads * seq), index / heads % seq),
            };
            let at = (if case.batched { b * seq } else { 0 } + s) * row;
            let (exact, scale) = reference::head(&wide(x), &cos[at..at + row], &sin[at..at + row], case.direction);
            let (rho, floor) = match T::DTYPE {
                DType::F16 => (T::DTYPE.unit_roundoff(), 2f64.powi(-25)),
                DType::BF16 => (T::DTYPE.unit_roundoff(), 0.0),
                _ => (0.0, 0.0),
            };
            for i in 0..width {
                let bound = rho * exact[i].abs() + 4.0 * T::DTYPE.compute().unit_roundoff() * scale[i] + floor;
                let error = (got[i].to_f64() - exact[i]).abs();
                assert!(error <= bound, "{:?} head {index} place {i}: {:?}, exact {}", case.size, got[i], exact[i]);
            }
        }
    }
}

fn every_size_layout_and_table_is_within_the_bound<D: Run<Rope>>(device: &D) {
    let directions = [Direction::Forward, Direction::Backward];
    for (n, size) in SIZES.into_iter().enumerate() {
        for (m, layout) in [Layout::HeadsFirst, Layout::PositionsFirst].into_iter().enumerate() {
            for (full, batched) in [(false, false), (true, true), (true, false)] {
                let case = Case { size, layout, direction: directions[(n + m) % 2], full, batched };
                check::<f32, f32, D>(device, &case);
                check::<bf16, bf16, D>(device, &case);
                check::<bf16, f32, D>(device, &case);
                check::<f16, f32, D>(device, &case);
                if has_float64(device) {
                    check::<f64, f64, D>(device, &case);
                }
            }
        }
    }
}

fn empty_tensors_stay_empty<D: Run<Rope>>(device: &D) {
    for shape in [[0, 3, 2, 4], [2, 0, 2, 4], [2, 3, 0, 4], [2, 3, 2, 0]] {
        let x = Tensor::from_slice::<f32>(device, &[], &shape).unwrap();
        let rows = shape[1];
        let table = Tensor::from_slice(device, &vec![1f32; rows * shape[3] / 2], &[rows, shape[3] / 2]).unwrap();
        let (layout, direction) = (Layout::PositionsFirst, Direction::Forward);
        let (y, _) = rope(x.view(), None, table.view(), table.view(), layout, direction).unwrap();
        assert_eq!(y.shape(), shape);
    }
}

fn back_is_the_inverse_of_a_rotation<D: Run<Rope>>(device: &D) {
    let mut random = Random::new(3);
    let values: Vec<f32> = random.normals(6 * 5 * 64);
    let angles: Vec<f32> = random.normals(6 * 32);
    let x = Tensor::from_slice(device, &values, &[1, 6, 5, 64]).unwrap();
    let [cos, sin] = [f32::cos, f32::sin]
        .map(|f| Tensor::from_slice(device, &angles.iter().map(|a| f(*a)).collect::<Vec<_>>(), &[6, 32]).unwrap());
    let turn = |x: &Tensor<D>, direction| {
        rope(x.view(), None, cos.view(), sin.view(), Layout::PositionsFirst, direction).unwrap().0
    };
    let back = turn(&turn(&x, Direction::Forward), Direction::Backward).to_vec::<f32>().unwrap();
    assert!(back.iter().zip(&values).all(|(got, want)| (got - want).abs() < 4e-6));
}

each_device!(
    every_size_layout_and_table_is_within_the_bound,
    empty_tensors_stay_empty,
    back_is_the_inverse_of_a_rotation,
);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    let tensor = |shape: &[usize]| Tensor::from_slice(&cpu, &vec![1f32; shape.iter().product()], shape).unwrap();
    let text = |q: &[usize], k: Option<&[usize]>, cos: &[usize], sin: &[usize]| {
        let (q, k, cos, sin) = (tensor(q), k.map(tensor), tensor(cos), tensor(sin));
        let k = k.as_ref().map(Tensor::view);
        let (layout, direction) = (Layout::PositionsFirst, Direction::Forward);
        rope(q.view(), k, cos.view(), sin.view(), layout, direction).err().unwrap().to_string()
    };
    assert_eq!(text(&[2, 3, 4], None, &[3, 2], &[3, 2]), "rope_forward: x: got shape [2, 3, 4], expected 4 dimensions");
    assert_eq!(
        text(&[1, 3, 2, 5], None, &[3, 2], &[3, 2]),
        "rope_forward: x: got shape [1, 3, 2, 5], expected an even last size"
    );
    assert_eq!(
        text(&[1, 3, 2, 4], Some(&[1, 2, 2, 4]), &[3, 2], &[3, 2]),
        "rope_fwd: k: got shape [1, 2, 2, 4], expected shape [1, 3, 2, 4] but for the number of heads"
    );
    assert_eq!(
        text(&[1, 3, 2, 4], None, &[2, 2], &[2, 2]),
        "rope_forward: cos: got shape [2, 2], expected at least 3 rows, or 1 times 3"
    );
    assert_eq!(
        text(&[1, 3, 2, 4], None, &[3, 3], &[3, 3]),
        "rope_forward: cos: got shape [3, 3], expected a last size of 2 or 4"
    );
    assert_eq!(
        text(&[1, 3, 2, 4], None, &[3, 2], &[3, 4]),
        "rope_forward: sin: got shape [3, 4], expected shape [3, 2], as cos"
    );
}
