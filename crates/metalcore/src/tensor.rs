//! Tensors of the Rust library: a shape, a type and a buffer. Row-major and contiguous.

use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};

/// A tensor that owns its memory (shared among clones).
#[derive(Clone)]
pub struct Tensor<D: Device> {
    device: D,
    buffer: D::Buffer,
    shape: Vec<usize>,
    dtype: DType,
}

/// A borrowed tensor.
pub struct View<'a, D: Device> {
    /// Where it lives.
    pub device: &'a D,
    /// Its memory.
    pub buffer: &'a D::Buffer,
    /// Sizes, slowest dimension first.
    pub shape: &'a [usize],
    /// Element type.
    pub dtype: DType,
}

impl<D: Device> Tensor<D> {
    /// Uninitialised.
    pub fn empty(device: &D, shape: &[usize], dtype: DType) -> Result<Tensor<D>> {
        let bytes = shape.iter().try_fold(dtype.size(), |product, size| product.checked_mul(*size));
        let bytes = bytes.ok_or(Error::OutOfMemory { device: device.caps().kind, bytes: usize::MAX })?;
        Ok(Tensor { device: device.clone(), buffer: device.alloc(bytes)?, shape: shape.to_vec(), dtype })
    }

    /// A copy of `values`, row by row.
    pub fn from_slice<T: Element>(device: &D, values: &[T], shape: &[usize]) -> Result<Tensor<D>> {
        let numel: usize = shape.iter().product();
        if numel != values.len() {
            let expected = format!("{numel} for shape {shape:?}");
            return Err(Error::argument("from_slice", "values", format!("{} elements", values.len()), expected));
        }
        let tensor = Tensor::empty(device, shape, T::DTYPE)?;
        // SAFETY: an Element is plain memory.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        device.write(&tensor.buffer, 0, bytes)?;
        Ok(tensor)
    }

    /// Its values, after everything enqueued before.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            let (got, expected) = (T::DTYPE.to_string(), self.dtype.to_string());
            return Err(Error::DType { op: "to_vec", argument: "T", got, expected });
        }
        let mut values = vec![T::from_f64(0.0); self.numel()];
        // SAFETY: an Element is plain memory, and any bits are a value.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(&values[..])) };
        self.device.read(&self.buffer, 0, bytes)?;
        Ok(values)
    }

    /// Borrows it.
    pub fn view(&self) -> View<'_, D> {
        View { device: &self.device, buffer: &self.buffer, shape: &self.shape, dtype: self.dtype }
    }
    /// Sizes, slowest dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
    /// Where it lives.
    pub fn device(&self) -> &D {
        &self.device
    }
    /// Its memory.
    pub fn buffer(&self) -> &D::Buffer {
        &self.buffer
    }
}

impl<D: Device> Clone for View<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for View<'_, D> {}

impl<D: Device> View<'_, D> {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}
