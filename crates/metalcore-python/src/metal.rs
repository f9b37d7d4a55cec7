//! Metal through `torch.mps.compile_shader`, or through a stand-in with the same rules: tensors are Python objects, a
//! kernel is `library.name(*tensors, words, threads=, group_size=, arg_casts=)`. Everything that depends on a Mac
//! is in this file.

use crate::host::{Host, Stored};
use metalcore::device::gpu::{Arg, Gpu, Spec, Target};
use metalcore::device::{Caps, Device};
use metalcore::{DType, Error, Index, Result};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Kernels compiled by one `compile_shader`.
#[derive(Clone)]
pub struct Metal {
    inner: Arc<Inner>,
}
struct Inner {
    caps: Caps,
    torch: Py<PyModule>,
    compile_shader: Py<PyAny>,
    /// `mps`, or `cpu` for the stand-in.
    place: String,
    functions: Mutex<HashMap<Spec, Arc<Py<PyAny>>>>,
}

/// A tensor as memory: shared, as every Python object.
pub type Buffer = Arc<Py<PyAny>>;

impl Metal {
    /// Kernels go through `compile_shader`, tensors live on torch's device `place`.
    pub fn new(py: Python<'_>, compile_shader: Py<PyAny>, place: &str) -> PyResult<Metal> {
        let caps = Caps { kind: "mps", threadgroup_bytes: 32768, units: 16, float64: false };
        let torch = py.import("torch")?.unbind();
        let inner = Inner { caps, torch, compile_shader, place: place.to_owned(), functions: Mutex::default() };
        Ok(Metal { inner: Arc::new(inner) })
    }

    fn function(&self, py: Python<'_>, spec: &Spec) -> PyResult<Arc<Py<PyAny>>> {
        if let Some(function) = self.inner.functions.lock().expect("no holder panics").get(spec) {
            return Ok(function.clone());
        }
        let library = self.inner.compile_shader.call1(py, (spec.text(Target::Metal),))?;
        let function = Arc::new(library.getattr(py, spec.entry)?);
        self.inner.functions.lock().expect("no holder panics").insert(spec.clone(), function.clone());
        Ok(function)
    }

    fn tensor(&self, py: Python<'_>, shape: Vec<usize>, dtype: &str) -> PyResult<Py<PyAny>> {
        let torch = self.inner.torch.bind(py);
        let options = PyDict::new(py);
        options.set_item("dtype", torch.getattr(dtype)?)?;
        options.set_item("device", &self.inner.place)?;
        Ok(torch.call_method("empty", (PyTuple::new(py, shape)?,), Some(&options))?.unbind())
    }
}

fn failed(py: Python<'_>, error: PyErr) -> Error {
    Error::Device { device: "mps", reason: error.value(py).to_string() }
}

impl Device for Metal {
    type Buffer = Buffer;

    fn caps(&self) -> &Caps {
        &self.inner.caps
    }
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Python::attach(|py| {
            let words = bytes.div_ceil(4).max(1); // float32: what most kernels take
            self.tensor(py, vec![words], "float32").map(Arc::new).map_err(|e| failed(py, e))
        })
    }
    fn write(&self, _: &Buffer, _: usize, _: &[u8]) -> Result<()> {
        Err(Error::Unsupported { op: "write", reason: "host copies of mps tensors are torch's".to_owned() })
    }
    fn read(&self, _: &Buffer, _: usize, _: &mut [u8]) -> Result<()> {
        Err(Error::Unsupported { op: "read", reason: "host copies of mps tensors are torch's".to_owned() })
    }
    fn wait(&self) -> Result<()> {
        if self.inner.place == "cpu" {
            return Ok(());
        }
        Python::attach(|py| {
            let synchronize = || self.inner.torch.bind(py).getattr("mps")?.call_method0("synchronize");
            synchronize().map(drop).map_err(|e| failed(py, e))
        })
    }
}

impl Gpu for Metal {
    fn launch(&self, spec: &Spec, groups: usize, args: &[Arg<'_, Buffer>]) -> Result<()> {
        Python::attach(|py| {
            let run = || {
                let function = self.function(py, spec)?;
                let list = PyList::empty(py);
                for arg in args {
                    match arg {
                        Arg::Buffer(buffer) => list.append(buffer.bind(py))?,
                        Arg::Params(words) => list.append(words.iter().map(|w| *w as i32).collect::<Vec<_>>())?,
                    }
                }
                let casts = PyDict::new(py);
                casts.set_item(args.len() - 1, "int32")?;
                let options = PyDict::new(py);
                options.set_item("threads", groups * spec.threads as usize)?;
                options.set_item("group_size", spec.threads)?;
                options.set_item("arg_casts", casts)?;
                function.call(py, list.to_tuple(), Some(&options))
            };
            run().map(drop).map_err(|e| failed(py, e))
        })
    }

    /// A Metal buffer is aligned far beyond any vector; what counts is the tensor's offset in it.
    fn aligned(&self, buffer: &Buffer, bytes: u64) -> bool {
        Python::attach(|py| {
            let offset = || -> PyResult<u64> {
                let tensor = buffer.bind(py);
                let elements: u64 = tensor.call_method0("storage_offset")?.extract()?;
                let size: u64 = tensor.call_method0("element_size")?.extract()?;
                Ok(elements * size)
            };
            offset().is_ok_and(|offset| offset.is_multiple_of(bytes))
        })
    }

    fn address(&self, _: &Buffer) -> Option<u64> {
        None
    }
}

/// Tensors as Python objects.
pub struct Objects(pub Metal);

impl Objects {
    fn with_layout(&self, tensor: &Buffer, method: &str) -> Result<Buffer> {
        Python::attach(|py| {
            let copy = || {
                let options = PyDict::new(py);
                options.set_item("memory_format", self.0.inner.torch.bind(py).getattr("contiguous_format")?)?;
                tensor.call_method(py, method, (), Some(&options))
            };
            copy().map(Arc::new).map_err(|e| failed(py, e))
        })
    }

    fn of<T>(tensor: &Buffer, read: impl for<'py> Fn(&Bound<'py, PyAny>) -> PyResult<T>) -> T {
        Python::attach(|py| read(tensor.bind(py)).expect("the Python side passes tensors"))
    }
}

impl Host for Objects {
    type Device = Metal;
    type Tensor = Buffer;

    fn device(&self) -> &Metal {
        &self.0
    }
    fn shape(&self, tensor: &Buffer) -> Vec<usize> {
        Objects::of(tensor, |t| t.getattr("shape")?.extract())
    }
    fn strides(&self, tensor: &Buffer) -> Vec<usize> {
        Objects::of(tensor, |t| t.call_method0("stride")?.extract())
    }
    fn dtype(&self, tensor: &Buffer) -> Option<DType> {
        let name = Objects::of(tensor, |t| Ok(t.getattr("dtype")?.str()?.to_string()));
        DType::ALL.into_iter().find(|dtype| name == format!("torch.{dtype}"))
    }
    fn index(&self, tensor: &Buffer) -> Option<Index> {
        let name = Objects::of(tensor, |t| Ok(t.getattr("dtype")?.str()?.to_string()));
        match name.as_str() {
            "torch.int32" => Some(Index::I32),
            "torch.int64" => Some(Index::I64),
            _ => None,
        }
    }
    fn buffer(&self, tensor: &Buffer) -> Buffer {
        tensor.clone()
    }
    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Buffer> {
        Python::attach(|py| {
            self.0.tensor(py, shape.to_vec(), &dtype.to_string()).map(Arc::new).map_err(|e| failed(py, e))
        })
    }
    fn empty_index(&self, shape: &[usize], index: Index) -> Result<Buffer> {
        let dtype = if index == Index::I32 { "int32" } else { "int64" };
        Python::attach(|py| self.0.tensor(py, shape.to_vec(), dtype).map(Arc::new).map_err(|e| failed(py, e)))
    }
    fn stored(&self, tensor: &Buffer) -> Option<&'static Stored> {
        let name = Objects::of(tensor, |t| Ok(t.getattr("dtype")?.str()?.to_string()));
        Stored::of_name(name.strip_prefix("torch.")?)
    }
    fn empty_stored(&self, shape: &[usize], stored: &Stored) -> Result<Buffer> {
        Python::attach(|py| self.0.tensor(py, shape.to_vec(), stored.name).map(Arc::new).map_err(|e| failed(py, e)))
    }
    fn copy(&self, tensor: &Buffer) -> Result<Buffer> {
        self.with_layout(tensor, "clone")
    }
    fn is_here(&self, tensor: &Buffer) -> bool {
        let kind: String = Objects::of(tensor, |t| t.getattr("device")?.getattr("type")?.extract());
        kind == self.0.inner.place
    }
    fn is_contiguous(&self, tensor: &Buffer) -> bool {
        Objects::of(tensor, |t| t.call_method0("is_contiguous")?.extract())
    }
    fn contiguous(&self, tensor: Buffer) -> Result<Buffer> {
        // As `Shim::contiguous`: aligned as torch allocates.
        self.with_layout(&tensor, if self.0.aligned(&tensor, 16) { "contiguous" } else { "clone" })
    }
}
