//! metalcore._native: the operators of metalcore for PyTorch.

mod compile_shader;
mod config;
mod host;
mod internals;
mod metal;
mod object;
mod operator;
mod ops;
mod shim;
mod throw;

use metal::{Metal, Objects};
use pyo3::exceptions::{PyIndexError, PyNotImplementedError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// The Python exception of an error.
fn python_error(error: metalcore::Error) -> PyErr {
    let text = error.to_string();
    match throw::class(&error) {
        "ValueError" => PyValueError::new_err(text),
        "IndexError" => PyIndexError::new_err(text),
        "TypeError" => PyTypeError::new_err(text),
        "NotImplementedError" => PyNotImplementedError::new_err(text),
        _ => PyRuntimeError::new_err(text),
    }
}

/// Operators for tensors as Python objects: mps, and cpu under emulation.
#[pyclass(frozen, module = "metalcore._native")]
struct MetalDevice(Metal);

#[pymethods]
impl MetalDevice {
    /// `compile_shader` compiles, tensors live on torch's device `place`.
    #[new]
    fn new(py: Python<'_>, compile_shader: Py<PyAny>, place: &str) -> PyResult<MetalDevice> {
        Ok(MetalDevice(Metal::new(py, compile_shader, place)?))
    }

    /// Calls an operator with all its arguments.
    fn call(&self, name: &str, args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        let operator = ops::all().find(|operator| operator.name == name);
        let operator = operator.ok_or_else(|| PyValueError::new_err(format!("there is no operator {name}")))?;
        (operator.metal)(&Objects(self.0.clone()), args)
    }
}

/// Looks libtorch's shims up in torch/lib and registers the operators; any tensor shows how tensors are laid out. Called once, by metalcore/__init__.py.
#[pyfunction]
fn load(library_dir: std::path::PathBuf, some_tensor: &Bound<'_, PyAny>) -> PyResult<()> {
    object::calibrate(some_tensor)?;
    shim::load(&library_dir).map_err(PyRuntimeError::new_err)?;
    shim::register(ops::all()).map_err(python_error)
}

/// Names of the operators that [`load`] registers.
#[pyfunction]
fn operators() -> Vec<&'static str> {
    ops::all().map(|operator| operator.name).collect()
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
    use super::{cache_dir, cuda_available, load, metal_texts, operators, set_cache_dir, set_threads};
}
