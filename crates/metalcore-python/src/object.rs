//! Tensors behind Python objects.

use pyo3::intern;
use pyo3::prelude::*;
use std::sync::OnceLock;

/// Where a Python tensor object keeps its TensorImpl pointer, in bytes, if it was found.
static OFFSET: OnceLock<Option<usize>> = OnceLock::new();

/// Looks for the pointer in a tensor's object: behind the object's header, perhaps after a flag.
pub fn calibrate(tensor: &Bound<'_, PyAny>) -> PyResult<()> {
    let address: usize = tensor.getattr("_cdata")?.extract()?;
    let size: usize = tensor.get_type().getattr("__basicsize__")?.extract()?;
    let header = 2 * size_of::<usize>();
    let found = (header..size.min(header + 4 * size_of::<usize>())).step_by(size_of::<usize>()).find(|offset| {
        // SAFETY: in bounds of the object by its type's size.
        unsafe { *tensor.as_ptr().cast::<u8>().add(*offset).cast::<usize>() == address }
    });
    OFFSET.get_or_init(|| found);
    Ok(())
}

/// The TensorImpl pointer of a tensor: as `_cdata`, without the Python call.
#[inline]
pub fn tensor_impl(tensor: &Bound<'_, PyAny>) -> PyResult<usize> {
    if let Some(Some(offset)) = OFFSET.get() {
        // SAFETY: every tensor object has the layout of the one it was found in.
        return Ok(unsafe { *tensor.as_ptr().cast::<u8>().add(*offset).cast::<usize>() });
    }
    tensor.getattr(intern!(tensor.py(), "_cdata"))?.extract()
}
