//! NVIDIA GPUs, through the driver's interface: the primary context, a stream, and kernels compiled by NVRTC.
//! Inside PyTorch the stream and the memory are torch's; alone, they are our own.

mod compile;

use super::{
    Caps, Device,
    gpu::{Arg, Gpu, Spec},
};
use crate::error::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use rustc_hash::FxHashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// One GPU and one stream on it.
#[derive(Clone)]
pub struct Cuda {
    gpu: &'static Primary,
    stream: Stream,
    memory: Arc<dyn Memory>,
}

/// Source of device memory.
pub trait Memory: Send + Sync {
    /// Memory of at least `bytes` bytes, ordered with the stream, and what frees it when dropped.
    fn alloc(&self, bytes: usize) -> Result<(u64, Box<dyn Send + Sync>)>;
}

/// A stream by its driver handle.
#[derive(Clone, Copy)]
struct Stream(sys::CUstream);
// SAFETY: a driver handle may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// What exists once per GPU in a process.
struct Primary {
    context: sys::CUcontext,
    caps: Caps,
    /// Such as `sm_90`.
    architecture: String,
    functions: RwLock<FxHashMap<Spec, Function>>,
    compiling: Mutex<()>,
}
// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Primary {}
// SAFETY: as above; the tables are locked.
unsafe impl Sync for Primary {}

/// Puts the context back that was current before, so that the host framework finds its own device.
struct Entered {
    before: Option<sys::CUcontext>,
}
impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(context) = self.before {
            // SAFETY: it was current a moment ago. Should it fail, the next call that needs it says so.
            let _ = unsafe { result::ctx::set_current(context) };
        }
    }
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);
// SAFETY: a driver handle may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

fn failed(error: DriverError) -> Error {
    Error::Device { device: "cuda", reason: format!("{error:?}") }
}

/// Whether the driver's library is there and shows at least one GPU.
pub fn available() -> bool {
    count() > 0
}

/// Number of GPUs that the driver shows.
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        // SAFETY: only looks for a library by its name.
        if !unsafe { sys::is_culib_present() } || result::init().is_err() {
            return 0;
        }
        result::device::get_count().map_or(0, |count| count.max(0) as usize)
    })
}

impl Primary {
    fn get(index: usize) -> Result<&'static Primary> {
        static ALL: Mutex<Vec<(usize, &'static Primary)>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().expect("no holder panics");
        if let Some((_, primary)) = all.iter().find(|(i, _)| *i == index) {
            return Ok(primary);
        }
        if index >= count() {
            return Err(Error::Device {
                device: "cuda",
                reason: format!("got GPU {index}, the driver shows {}", count()),
            });
        }
        let primary: &'static Primary = Box::leak(Box::new(Primary::open(index).map_err(failed)?));
        all.push((index, primary));
        Ok(primary)
    }

    fn open(index: usize) -> std::result::Result<Primary, DriverError> {
        use sys::CUdevice_attribute as A;
        let device = result::device::get(index as i32)?;
        // SAFETY: `device` is valid; the context is kept for the life of the process.
        let context = unsafe { result::primary_ctx::retain(device)? };
        // SAFETY: `device` is valid.
        let attribute = |a| unsafe { result::device::get_attribute(device, a) };
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let units = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let caps = Caps { kind: "cuda", threadgroup_bytes: 48 * 1024, units, float64: true };
        Ok(Primary {
            context,
            caps,
            architecture: format!("sm_{major}{minor}"),
            functions: RwLock::default(),
            compiling: Mutex::default(),
        })
    }

    /// Makes the context current on this thread (autograd's threads come without one) until the guard is dropped.
    fn enter(&self) -> Result<Entered> {
        let before = result::ctx::get_current().map_err(failed)?;
        if before == Some(self.context) {
            return Ok(Entered { before: None });
        }
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed)?;
        Ok(Entered { before })
    }

    fn function(&self, spec: &Spec) -> Result<Function> {
        if let Some(function) = self.functions.read().expect("no holder panics").get(spec) {
            return Ok(*function);
        }
        let _one_at_a_time = self.compiling.lock().expect("no holder panics");
        if let Some(function) = self.functions.read().expect("no holder panics").get(spec) {
            return Ok(*function);
        }
        let cubin = compile::cubin(spec, &self.architecture)?;
        let name = std::ffi::CString::new(spec.entry).expect("a kernel's name has no zero byte");
        // SAFETY: the image is a complete cubin; the module is never unloaded.
        let function = unsafe {
            let module = result::module::load_data(cubin.as_ptr().cast()).map_err(failed)?;
            result::module::get_function(module, name).map_err(failed)?
        };
        self.functions.write().expect("no holder panics").insert(spec.clone(), Function(function));
        Ok(Function(function))
    }
}

impl Cuda {
    /// GPU `index` with a stream and memory of our own.
    pub fn new(index: usize) -> Result<Cuda> {
        let gpu = Primary::get(index)?;
        let _current = gpu.enter()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
        Ok(Cuda { gpu, stream: Stream(stream), memory: Arc::new(Own { gpu, stream: Stream(stream) }) })
    }

    /// GPU `index` with somebody else's stream and memory.
    ///
    /// # Safety
    /// `stream` must be a live stream of that GPU's primary context, or null.
    pub unsafe fn foreign(index: usize, stream: *mut c_void, memory: Arc<dyn Memory>) -> Result<Cuda> {
        Ok(Cuda { gpu: Primary::get(index)?, stream: Stream(stream.cast()), memory })
    }
}

/// Stream-ordered memory of the driver.
struct Own {
    gpu: &'static Primary,
    stream: Stream,
}
struct OwnBlock {
    gpu: &'static Primary,
    stream: Stream,
    address: u64,
}
impl Drop for OwnBlock {
    fn drop(&mut self) {
        // A failure here means that the context is gone, and with it the memory.
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: allocated by `alloc`, freed once, in the order of its stream.
            let _ = unsafe { result::free_async(self.address, self.stream.0) };
        }
    }
}
impl Memory for Own {
    fn alloc(&self, bytes: usize) -> Result<(u64, Box<dyn Send + Sync>)> {
        let _current = self.gpu.enter()?;
        // SAFETY: the stream is alive.
        let address = unsafe { result::malloc_async(self.stream.0, bytes.max(1)) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { device: "cuda", bytes },
            _ => failed(error),
        })?;
        Ok((address, Box::new(OwnBlock { gpu: self.gpu, stream: self.stream, address })))
    }
}

/// Device memory.
#[derive(Clone)]
pub struct Buffer {
    address: u64,
    bytes: usize,
    _owner: Option<Arc<dyn Send + Sync>>,
}

impl Buffer {
    /// Memory that belongs to somebody else.
    ///
    /// # Safety
    /// `address` must be device memory, valid for `bytes` bytes until all work enqueued with it is done.
    pub unsafe fn foreign(address: u64, bytes: usize) -> Buffer {
        Buffer { address, bytes, _owner: None }
    }
}

impl Device for Cuda {
    type Buffer = Buffer;

    fn caps(&self) -> &Caps {
        &self.gpu.caps
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let (address, owner) = self.memory.alloc(bytes)?;
        Ok(Buffer { address, bytes, _owner: Some(Arc::from(owner)) })
    }

    fn write(&self, dst: &Buffer, at: usize, src: &[u8]) -> Result<()> {
        assert!(at + src.len() <= dst.bytes, "write of {} bytes at {at} to {}", src.len(), dst.bytes);
        let _current = self.gpu.enter()?;
        // SAFETY: in bounds by the assertion; pageable memory has been read when the call returns.
        unsafe { result::memcpy_htod_async(dst.address + at as u64, src, self.stream.0) }.map_err(failed)?;
        self.wait()
    }

    fn read(&self, src: &Buffer, at: usize, dst: &mut [u8]) -> Result<()> {
        assert!(at + dst.len() <= src.bytes, "read of {} bytes at {at} of {}", dst.len(), src.bytes);
        let _current = self.gpu.enter()?;
        // SAFETY: in bounds by the assertion; `dst` is not looked at before the wait.
        unsafe { result::memcpy_dtoh_async(dst, src.address + at as u64, self.stream.0) }.map_err(failed)?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        let _current = self.gpu.enter()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.stream.0) }.map_err(failed)
    }
}

impl Gpu for Cuda {
    fn launch(&self, spec: &Spec, groups: usize, args: &[Arg<'_, Buffer>]) -> Result<()> {
        let _current = self.gpu.enter()?;
        let function = self.gpu.function(spec)?;
        let groups = u32::try_from(groups).ok().filter(|g| *g <= i32::MAX as u32).ok_or_else(|| Error::Device {
            device: "cuda",
            reason: format!("{}: {groups} groups are more than one launch takes", spec.entry),
        })?;
        let mut values: [*mut c_void; 32] = [std::ptr::null_mut(); 32];
        for (value, arg) in values.iter_mut().zip(args) {
            *value = match arg {
                Arg::Buffer(buffer) => std::ptr::from_ref(&buffer.address).cast_mut().cast(),
                Arg::Params(words) => words.as_ptr().cast_mut().cast(),
            };
        }
        // SAFETY: the arguments are those of the kernel's signature, which `spec` and its op wrote together; the
        // driver copies them before it returns.
        unsafe {
            result::launch_kernel(
                function.0,
                (groups, 1, 1),
                (spec.threads, 1, 1),
                0,
                self.stream.0,
                &mut values[..args.len()],
            )
        }
        .map_err(failed)
    }

    fn aligned(&self, buffer: &Buffer, bytes: u64) -> bool {
        buffer.address.is_multiple_of(bytes)
    }

    fn address(&self, buffer: &Buffer) -> Option<u64> {
        Some(buffer.address)
    }
}
