//! One body for every device.

use super::{OpName, op_name, reference};
use crate::device::Run;
use crate::testing::{Random, has_float64};
use crate::{DType, Element, Tensor, each_device};
use half::{bf16, f16};

/// On both sides of a group, and of a chunk of the host.
const SIZES: [usize; 6] = [0, 1, 255, 256, 257, 20_000];

/// What rounding to a subnormal float16 may add.
const HALF_SMALLEST_F16: f64 = 1.0 / (1 << 25) as f64;

fn check<T: Element, D: Run<OpName>>(device: &D) {
    let mut random = Random::new(1);
    for numel in SIZES {
        let values: Vec<T> = random.normals(numel);
        let x = Tensor::from_slice(device, &values, &[numel]).expect("sizes fit");
        let y: Vec<T> = op_name(x.view()).expect("a valid call").to_vec().expect("readable");
        let unit = T::DTYPE.unit_roundoff() + 8.0 * T::DTYPE.compute().unit_roundoff();
        let tiny = if T::DTYPE == DType::F16 { HALF_SMALLEST_F16 } else { 0.0 };
        for ((x, got), expected) in values.iter().zip(&y).zip(reference::op_name(&values)) {
            let within = (got.to_f64() - expected).abs() <= unit * expected.abs() + tiny;
            assert!(within, "f({x:?}): got {got:?}, expected {expected:e}");
        }
        assert_eq!(x.to_vec::<T>().expect("readable"), values, "x was changed");
    }
}

fn every_element_is_within_its_bound<D: Run<OpName>>(device: &D) {
    check::<f32, D>(device);
    check::<f16, D>(device);
    check::<bf16, D>(device);
    if has_float64(device) {
        check::<f64, D>(device);
    }
}

fn the_shape_stays<D: Run<OpName>>(device: &D) {
    let x = Tensor::from_slice(device, &[1f32; 6], &[2, 1, 3]).expect("sizes fit");
    let y = op_name(x.view()).expect("a valid call");
    assert_eq!((y.shape(), y.dtype()), (x.shape(), DType::F32));
}

each_device!(every_element_is_within_its_bound, the_shape_stays);
