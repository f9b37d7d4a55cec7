//! A stand-in for `torch.mps.compile_shader` that runs Metal text in the emulator, on cpu tensors, and refuses what
//! torch or a Mac would refuse. The rules are those of torch/csrc/mps/Module.cpp and of the Metal feature set tables.

use metalcore::device::gpu::metal_to_emulator;
use metalcore_emulator::{Arg, ArgKind, KernelInfo, Library, Options};
use pyo3::exceptions::{PyAttributeError, PyRuntimeError, PySyntaxError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyList, PyTuple};
use std::sync::Arc;

const MAX_THREADS: u64 = 1024;

/// A compiled text: kernels are attributes.
#[pyclass(frozen, module = "metalcore._native")]
pub struct ShaderLibrary {
    library: Arc<Library>,
}

/// A kernel of a [`ShaderLibrary`].
#[pyclass(frozen, module = "metalcore._native")]
pub struct ShaderKernel {
    library: Arc<Library>,
    info: KernelInfo,
}

/// Compiles Metal text for the emulator. The text must carry metalcore's own Metal prelude, which is exchanged for
/// the emulator's; nothing else is changed.
#[pyfunction]
pub fn compile_shader(py: Python<'_>, source: &str) -> PyResult<ShaderLibrary> {
    if !source.is_ascii() {
        return Err(PySyntaxError::new_err("compile_shader: the source is not ASCII"));
    }
    let text = metal_to_emulator(source)
        .ok_or_else(|| PyValueError::new_err("compile_shader: the source does not carry metalcore's Metal prelude"))?;
    let cache = metalcore::cache_dir().join("emulator");
    let library = py.detach(|| Library::compile(&text, &cache)).map_err(|e| PySyntaxError::new_err(e.to_string()))?;
    Ok(ShaderLibrary { library: Arc::new(library) })
}

#[pymethods]
impl ShaderLibrary {
    fn __getattr__(&self, name: &str) -> PyResult<ShaderKernel> {
        let info = self.library.kernels().iter().find(|kernel| kernel.name == name);
        let info = info.ok_or_else(|| PyAttributeError::new_err(format!("the library has no kernel {name}")))?;
        Ok(ShaderKernel { library: self.library.clone(), info: info.clone() })
    }
    fn __dir__(&self) -> Vec<String> {
        self.library.kernels().iter().map(|kernel| kernel.name.clone()).collect()
    }
}

/// Memory that a launch binds: a tensor's, or bytes made from a Python number or list.
enum Bound_ {
    Memory { address: usize, bytes: usize },
    Bytes(Vec<u8>),
}

#[pymethods]
impl ShaderKernel {
    #[getter]
    fn max_threads_per_threadgroup(&self) -> u64 {
        MAX_THREADS
    }
    #[getter]
    fn thread_execution_width(&self) -> u64 {
        32
    }

    /// Arguments bind to buffer(0), buffer(1), ...; `threads` and `group_size` count threads.
    #[pyo3(signature = (*args, threads=None, group_size=None, arg_casts=None))]
    fn __call__(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        threads: Option<u64>,
        group_size: Option<u64>,
        arg_casts: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let refuse = |reason: String| Err(PyRuntimeError::new_err(format!("{}: {reason}", self.info.name)));
        let (threads, group_size) = (threads.unwrap_or(1), group_size.unwrap_or(0));
        if args.len() != self.info.args.len() {
            return refuse(format!("{} arguments are bound, the kernel has {}", args.len(), self.info.args.len()));
        }
        if group_size == 0 || group_size > MAX_THREADS || group_size != u64::from(self.info.threads) {
            return refuse(format!("group_size {group_size}, the kernel is written for {}", self.info.threads));
        }
        if threads == 0 || threads % group_size != 0 {
            return refuse(format!("threads {threads} is not a positive multiple of group_size {group_size}"));
        }
        let mut bound = Vec::with_capacity(args.len());
        for (i, arg) in args.iter().enumerate() {
            let cast = arg_casts.map(|casts| casts.get_item(i)).transpose()?.flatten();
            bound.push(bind(&arg, cast.map(|c| c.extract::<String>()).transpose()?, i)?);
        }
        for (value, info) in bound.iter().zip(&self.info.args) {
            let is_tensor = matches!(value, Bound_::Memory { .. });
            if is_tensor != (info.kind != ArgKind::Params) {
                return refuse(format!(
                    "argument {}: a tensor goes to a buffer, words to the parameter block",
                    info.name
                ));
            }
        }
        let list: Vec<Arg<'_>> = bound
            .iter()
            .map(|value| match value {
                Bound_::Memory { address, bytes } => Arg::Buffer { pointer: *address as *mut u8, bytes: *bytes },
                Bound_::Bytes(bytes) => Arg::Params(bytes),
            })
            .collect();
        let (groups, size) = ((threads / group_size) as u32, group_size as u32);
        let launch = Launch(list);
        // SAFETY: the tensors are alive through the call, and their storage ends where the range does.
        py.detach(|| unsafe { launch.run(&self.library, &self.info.name, groups, size) })
            .map_err(|e| PyRuntimeError::new_err(e.to_string()))
    }
}

/// Arguments that cross to the threads of the emulator.
struct Launch<'a>(Vec<Arg<'a>>);
// SAFETY: addresses of tensors that the caller keeps alive.
unsafe impl Sync for Launch<'_> {}
// SAFETY: as above.
unsafe impl Send for Launch<'_> {}
impl Launch<'_> {
    /// # Safety
    /// As `Library::launch`.
    unsafe fn run(
        &self,
        library: &Library,
        name: &str,
        groups: u32,
        size: u32,
    ) -> Result<(), metalcore_emulator::Error> {
        // SAFETY: the caller's promise.
        unsafe { library.launch(name, groups, size, &self.0, &Options::default()) }.map(drop)
    }
}

/// A tensor binds its buffer from its first element to the end of the storage; an int is 64 bits, a float 32, a list
/// of ints is 64 bits each unless cast to int32 or uint8.
fn bind(arg: &Bound<'_, PyAny>, cast: Option<String>, i: usize) -> PyResult<Bound_> {
    if arg.hasattr("_cdata")? {
        let storage = arg.call_method0("untyped_storage")?;
        let (start, size): (usize, usize) =
            (storage.call_method0("data_ptr")?.extract()?, storage.call_method0("nbytes")?.extract()?);
        let address: usize = arg.call_method0("data_ptr")?.extract()?;
        let bytes = if address == 0 { 0 } else { start + size - address };
        return Ok(Bound_::Memory { address, bytes });
    }
    if arg.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("argument {i}: a bool cannot be bound")));
    }
    if let Ok(list) = arg.cast::<PyList>() {
        if let Ok(values) = list.extract::<Vec<i64>>() {
            return ints(&values, cast.as_deref(), i);
        }
        let values: Vec<f64> = list.extract()?;
        return Ok(Bound_::Bytes(values.iter().flat_map(|v| (*v as f32).to_ne_bytes()).collect()));
    }
    if arg.is_instance_of::<PyInt>() {
        return Ok(Bound_::Bytes(arg.extract::<i64>()?.to_ne_bytes().to_vec()));
    }
    if let Ok(value) = arg.extract::<f64>() {
        return Ok(Bound_::Bytes((value as f32).to_ne_bytes().to_vec()));
    }
    Err(PyTypeError::new_err(format!("argument {i}: {} cannot be bound", arg.get_type().name()?)))
}

fn ints(values: &[i64], cast: Option<&str>, i: usize) -> PyResult<Bound_> {
    let bytes = match cast {
        None => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
        Some("int32") => values.iter().flat_map(|v| (*v as i32).to_ne_bytes()).collect(),
        Some("uint8") => values.iter().map(|v| *v as u8).collect(),
        Some(other) => return Err(PyRuntimeError::new_err(format!("argument {i}: no cast of a list to {other}"))),
    };
    Ok(Bound_::Bytes(bytes))
}
