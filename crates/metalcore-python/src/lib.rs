//! metalcore._native: the operators of metalcore for PyTorch.

mod compile_shader;
mod config;
mod host;
mod internals;
mod metal;
mod object;
mod ops;
mod shim;
mod throw;

use metal::{Buffer, Metal, Objects};
use pyo3::exceptions::{PyNotImplementedError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::sync::Arc;

/// The Python exception of an error.
fn python_error(error: metalcore::Error) -> PyErr {
    let text = error.to_string();
    match throw::class(&error) {
        "ValueError" => PyValueError::new_err(text),
        "TypeError" => PyTypeError::new_err(text),
        "NotImplementedError" => PyNotImplementedError::new_err(text),
        _ => PyRuntimeError::new_err(text),
    }
}

/// Operators for tensors as Python objects: mps, and cpu under emulation.
#[pyclass(frozen, module = "metalcore._native")]
struct MetalDevice(Metal);

type Object = Py<PyAny>;

/// torch's dispatcher passes None for an undefined tensor, whatever the schema says.
fn buffer(py: Python<'_>, object: Object) -> PyResult<Buffer> {
    if object.is_none(py) {
        return Err(PyTypeError::new_err("got None, expected a tensor"));
    }
    Ok(Arc::new(object))
}
fn optional(object: Option<Object>) -> Option<Buffer> {
    object.map(Arc::new)
}
fn object(py: Python<'_>, buffer: &Buffer) -> Object {
    buffer.clone_ref(py)
}

#[pymethods]
impl MetalDevice {
    /// `compile_shader` compiles, tensors live on torch's device `place`.
    #[new]
    fn new(py: Python<'_>, compile_shader: Object, place: &str) -> PyResult<MetalDevice> {
        Ok(MetalDevice(Metal::new(py, compile_shader, place)?))
    }

    #[pyo3(signature = (a, mode=0))]
    fn qr(&self, py: Python<'_>, a: Object, mode: i64) -> PyResult<(Object, Object)> {
        let (q, r) = ops::qr::qr(&Objects(self.0.clone()), buffer(py, a)?, mode).map_err(python_error)?;
        Ok((object(py, &q), object(py, &r)))
    }

    fn rms_norm_fwd(
        &self,
        py: Python<'_>,
        x: Object,
        weight: Option<Object>,
        normalized: i64,
        eps: f64,
    ) -> PyResult<(Object, Object)> {
        let host = Objects(self.0.clone());
        let ops::rms_norm::Normed { y, rstd, .. } =
            ops::rms_norm::forward(&host, buffer(py, x)?, None, optional(weight), normalized, eps)
                .map_err(python_error)?;
        Ok((object(py, &y), object(py, &rstd)))
    }

    fn add_rms_norm_fwd(
        &self,
        py: Python<'_>,
        input: Object,
        residual: Object,
        weight: Option<Object>,
        normalized: i64,
        eps: f64,
    ) -> PyResult<(Object, Object, Object)> {
        let host = Objects(self.0.clone());
        let (input, residual) = (buffer(py, input)?, buffer(py, residual)?);
        let ops::rms_norm::Normed { y, sum, rstd } =
            ops::rms_norm::forward(&host, input, Some(residual), optional(weight), normalized, eps)
                .map_err(python_error)?;
        let sum = sum.expect("the residual form has a sum");
        Ok((object(py, &y), object(py, &sum), object(py, &rstd)))
    }

    fn rms_norm_bwd(
        &self,
        py: Python<'_>,
        dy: Object,
        x: Object,
        weight: Option<Object>,
        rstd: Object,
        normalized: i64,
    ) -> PyResult<(Object, Object)> {
        let host = Objects(self.0.clone());
        let (dy, x, rstd) = (buffer(py, dy)?, buffer(py, x)?, buffer(py, rstd)?);
        let (dx, dw) =
            ops::rms_norm::backward(&host, dy, None, x, optional(weight), rstd, normalized).map_err(python_error)?;
        Ok((object(py, &dx), object(py, &dw)))
    }

    fn add_rms_norm_bwd(
        &self,
        py: Python<'_>,
        dy: Object,
        d_residual_out: Object,
        residual_out: Object,
        weight: Option<Object>,
        rstd: Object,
        normalized: i64,
    ) -> PyResult<(Object, Object)> {
        let host = Objects(self.0.clone());
        let (dy, d_sum, h, rstd) =
            (buffer(py, dy)?, buffer(py, d_residual_out)?, buffer(py, residual_out)?, buffer(py, rstd)?);
        let (dx, dw) = ops::rms_norm::backward(&host, dy, Some(d_sum), h, optional(weight), rstd, normalized)
            .map_err(python_error)?;
        Ok((object(py, &dx), object(py, &dw)))
    }
}

/// Looks libtorch's shims up in torch/lib and registers the operators; any tensor shows how tensors are laid out. Called once, by metalcore/__init__.py.
#[pyfunction]
fn load(library_dir: std::path::PathBuf, some_tensor: &Bound<'_, PyAny>) -> PyResult<()> {
    object::calibrate(some_tensor)?;
    shim::load(&library_dir).map_err(PyRuntimeError::new_err)?;
    shim::register(&[ops::qr::OPERATOR]).map_err(python_error)?;
    shim::register(&ops::rms_norm::OPERATORS).map_err(python_error)
}

/// Threads of cpu operators; 0: as many as torch uses at the time of a call.
#[pyfunction]
fn set_threads(count: usize) {
    config::set_threads(count);
}

/// Where compiled kernels are kept; None: the default.
#[pyfunction]
#[pyo3(signature = (path=None))]
fn set_cache_dir(path: Option<std::path::PathBuf>) {
    metalcore::set_cache_dir(path);
}

/// Where compiled kernels are kept.
#[pyfunction]
fn cache_dir() -> std::path::PathBuf {
    metalcore::cache_dir()
}

/// Whether an NVIDIA driver shows a GPU.
#[pyfunction]
fn cuda_available() -> bool {
    metalcore::device::cuda::available()
}

/// The exact text of every kernel specialisation for Apple's compiler: (name, text).
#[pyfunction]
fn metal_texts() -> Vec<(String, String)> {
    metalcore::kernels::all().iter().filter(|unit| unit.metal()).map(|unit| (unit.name(), unit.metal_text())).collect()
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::MetalDevice;
    #[pymodule_export]
    use super::compile_shader::{ShaderKernel, ShaderLibrary, compile_shader};
    #[pymodule_export]
    use super::ops::adamw::{AdamWGroup, AdamWStep, adamw_};
    #[pymodule_export]
    use super::{cache_dir, cuda_available, load, metal_texts, set_cache_dir, set_threads};
}
