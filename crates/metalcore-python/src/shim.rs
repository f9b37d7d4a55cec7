//! libtorch's C shims, looked up in the library that `import torch` has loaded: no C++ is linked. See
//! torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h.

use crate::host::Stored;
use crate::internals::Internals;
use crate::operator::Operator;
use crate::throw::Thrower;
use libloading::Library;
use metalcore::device::cpu::Threads;
use metalcore::{DType, Error, Index, Result};
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::sync::OnceLock;

/// `at::Tensor*`.
pub type Handle = *mut c_void;
/// A value of a boxed call: a tensor is a handle, float the bits of a double, int and bool an integer; see
/// [`take_cell`] and [`take_list`].
pub type Value = u64;
/// A boxed kernel. It may throw a C++ exception.
pub type Boxed = unsafe extern "C-unwind" fn(*mut Value, u64, u64);

/// Codes of `c10::DeviceType`.
pub const CPU: i32 = 0;
/// As [`CPU`].
pub const CUDA: i32 = 1;

macro_rules! shims {
    ($($field:ident = $symbol:literal: fn($($arg:ty),*) -> $ret:ty;)*) => {
        /// The functions used.
        pub struct Shims {
            $($field: unsafe extern "C" fn($($arg),*) -> $ret,)*
            current_cuda_stream: OnceLock<Option<CurrentStream>>,
            num_threads: Option<NumThreads>,
            parallel_for: Option<ParallelFor>,
            dispatcher: Option<Dispatcher>,
            lists: Option<Lists>,
            /// What the shims do not offer.
            pub internals: Option<Internals>,
            /// Raises a Python exception from inside an operator.
            pub thrower: Thrower,
            library_dir: std::path::PathBuf,
        }
        impl Shims {
            fn load(library: &'static Library, library_dir: &Path) -> std::result::Result<Shims, libloading::Error> {
                // SAFETY: the types are those of the headers of torch 2.7 and later.
                unsafe {
                    Ok(Shims {
                        $($field: *library.get(concat!($symbol, "\0"))?,)*
                        current_cuda_stream: OnceLock::new(),
                        dispatcher: Dispatcher::load(library),
                        lists: Lists::load(library),
                        num_threads: library.get(b"_ZN2at15get_num_threadsEv\0").ok().map(|f| *f),
                        parallel_for: library.get(b"torch_parallel_for\0").ok().map(|f| *f),
                        internals: Internals::load(library),
                        thrower: Thrower::load(library)?,
                        library_dir: library_dir.to_owned(),
                    })
                }
            }
        }
    };
}

shims! {
    dim = "aoti_torch_get_dim": fn(Handle, *mut i64) -> i32;
    sizes = "aoti_torch_get_sizes": fn(Handle, *mut *const i64) -> i32;
    strides = "aoti_torch_get_strides": fn(Handle, *mut *const i64) -> i32;
    numel = "aoti_torch_get_numel": fn(Handle, *mut i64) -> i32;
    dtype = "aoti_torch_get_dtype": fn(Handle, *mut i32) -> i32;
    device_type = "aoti_torch_get_device_type": fn(Handle, *mut i32) -> i32;
    device_index = "aoti_torch_get_device_index": fn(Handle, *mut i32) -> i32;
    data_ptr = "aoti_torch_get_data_ptr": fn(Handle, *mut *mut c_void) -> i32;
    empty_strided = "aoti_torch_empty_strided": fn(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> i32;
    copy = "aoti_torch_copy_": fn(Handle, Handle, i32) -> i32;
    delete = "aoti_torch_delete_tensor_object": fn(Handle) -> i32;
    new_handle = "aoti_torch_new_tensor_handle": fn(Handle, *mut Handle) -> i32;
    init_fragment = "aoti_torch_library_init_fragment": fn(*const c_char, *const c_char, u32, *mut *mut c_void) -> i32;
    init_impl = "aoti_torch_library_init_impl": fn(*const c_char, *const c_char, *const c_char, u32, *mut *mut c_void) -> i32;
    library_def = "aoti_torch_library_def": fn(*mut c_void, *const c_char) -> i32;
    library_impl = "aoti_torch_library_impl": fn(*mut c_void, *const c_char, Boxed) -> i32;
}

/// `int at::get_num_threads()`.
type NumThreads = unsafe extern "C" fn() -> i32;
/// Calls a function for parts of a range, on torch's threads; of torch 2.10 and later.
type ParallelFor = unsafe extern "C" fn(i64, i64, i64, extern "C" fn(i64, i64, *mut c_void), *mut c_void) -> i32;
type CurrentStream = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;

/// Calls operators of torch by name; of torch 2.10 and later.
struct Dispatcher {
    call: unsafe extern "C" fn(*const c_char, *const c_char, *mut Value, u64) -> i32,
    new_string: unsafe extern "C" fn(*const c_char, usize, *mut *mut c_void) -> i32,
}
/// The value layout this was written against: torch 2.10.0.
const BUILD_VERSION: u64 = (2 << 56) | (10 << 48);

impl Dispatcher {
    fn load(library: &'static Library) -> Option<Dispatcher> {
        // SAFETY: the types are those of the headers.
        unsafe {
            let call = *library.get(b"torch_call_dispatcher\0").ok()?;
            Some(Dispatcher { call, new_string: *library.get(b"torch_new_string_handle\0").ok()? })
        }
    }
}

/// Reads lists of boxed calls; of torch 2.10 and later.
struct Lists {
    size: unsafe extern "C" fn(*mut c_void, *mut usize) -> i32,
    get: unsafe extern "C" fn(*mut c_void, usize, *mut Value) -> i32,
    delete: unsafe extern "C" fn(*mut c_void) -> i32,
}

impl Lists {
    fn load(library: &'static Library) -> Option<Lists> {
        // SAFETY: the types are those of the headers.
        unsafe {
            Some(Lists {
                size: *library.get(b"torch_list_size\0").ok()?,
                get: *library.get(b"torch_list_get_item\0").ok()?,
                delete: *library.get(b"torch_delete_list\0").ok()?,
            })
        }
    }
}

static SHIMS: OnceLock<Shims> = OnceLock::new();

/// The shims, once [`load`] has been called by the Python package.
pub fn get() -> &'static Shims {
    SHIMS.get().expect("metalcore/__init__.py loads the shims first")
}

/// Looks the shims up in the libraries of the folder torch/lib.
pub fn load(library_dir: &Path) -> std::result::Result<(), String> {
    if SHIMS.get().is_some() {
        return Ok(());
    }
    let library = open(library_dir, "torch_cpu").map_err(|e| e.to_string())?;
    let shims = Shims::load(library, library_dir).map_err(|e| format!("torch is too old (2.7 is needed): {e}"))?;
    if shims.parallel_for.is_some() {
        Threads::lend(on_torch_threads);
    }
    drop(SHIMS.set(shims)); // another thread was faster with the same
    Ok(())
}

/// torch's own threads for our loops: its idle OpenMP threads spin, and leave no processor to others for milliseconds.
fn on_torch_threads(calls: usize, body: &(dyn Fn() + Sync)) -> bool {
    extern "C" fn call(_: i64, _: i64, body: *mut c_void) {
        // SAFETY: the address of a body that outlives the loop; it does not panic, as Threads::lend says.
        unsafe { (*body.cast::<&(dyn Fn() + Sync)>())() }
    }
    if num_threads().is_none_or(|count| count < calls) {
        return false;
    }
    let mut body = body;
    let run = get().parallel_for.expect("it was there when it was lent");
    // SAFETY: the loop returns after its last call.
    unsafe { run(0, calls as i64, 1, call, (&raw mut body).cast()) == 0 }
}

fn open(library_dir: &Path, name: &str) -> std::result::Result<&'static Library, libloading::Error> {
    let file = format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    // SAFETY: torch has loaded it already: nothing is initialised again.
    let library = unsafe { Library::new(library_dir.join(file)) }?;
    Ok(Box::leak(Box::new(library)))
}

fn failed(what: &str) -> Error {
    Error::Device { device: "torch", reason: format!("{what} failed") }
}

fn check(code: i32, what: &str) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(failed(what)) }
}

/// A tensor of torch that this value owns.
pub struct Tensor(Handle);
// SAFETY: an at::Tensor is counted atomically.
unsafe impl Send for Tensor {}
// SAFETY: as above; nothing here changes it.
unsafe impl Sync for Tensor {}
impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: owned, deleted once.
        unsafe { (get().delete)(self.0) };
    }
}

impl Tensor {
    /// Takes a handle over.
    ///
    /// # Safety
    /// The handle is live and nobody else deletes it.
    pub unsafe fn from_handle(handle: Handle) -> Tensor {
        Tensor(handle)
    }
    /// Gives the handle up.
    pub fn into_handle(self) -> Handle {
        let handle = self.0;
        std::mem::forget(self);
        handle
    }
    /// Looks at it.
    pub fn peek(&self) -> Peek<'_> {
        Peek { handle: self.0, _life: std::marker::PhantomData }
    }
    /// Uninitialised, contiguous.
    pub fn empty(shape: &[usize], dtype: DType, device: (i32, i32)) -> Result<Tensor> {
        let sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        Tensor::empty_code(&sizes, dtype_code(dtype), device)
    }
    /// An uninitialised, contiguous tensor of indices.
    pub fn empty_index(shape: &[usize], index: Index, device: (i32, i32)) -> Result<Tensor> {
        let sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        Tensor::empty_code(&sizes, if index == Index::I32 { I32 } else { I64 }, device)
    }
    /// An uninitialised, contiguous tensor of elements that are moved.
    pub fn empty_stored(shape: &[usize], stored: &Stored, device: (i32, i32)) -> Result<Tensor> {
        let sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        Tensor::empty_code(&sizes, stored.code, device)
    }
    fn empty_code(sizes: &[i64], dtype: i32, (device, index): (i32, i32)) -> Result<Tensor> {
        let mut strides = vec![1; sizes.len()];
        for i in (1..sizes.len()).rev() {
            strides[i - 1] = strides[i] * sizes[i].max(1);
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: sizes and strides have as many entries as said.
        let code = unsafe {
            (get().empty_strided)(
                sizes.len() as i64,
                sizes.as_ptr(),
                strides.as_ptr(),
                dtype,
                device,
                index,
                &mut handle,
            )
        };
        check(code, "allocating a tensor (out of memory?)")?;
        Ok(Tensor(handle))
    }
    /// Bytes of scratch memory on a device.
    pub fn scratch(bytes: usize, device: (i32, i32)) -> Result<Tensor> {
        const UINT8: i32 = 0;
        Tensor::empty_code(&[bytes as i64], UINT8, device)
    }
}

/// A tensor that somebody else keeps alive.
#[derive(Clone, Copy)]
pub struct Peek<'a> {
    handle: Handle,
    _life: std::marker::PhantomData<&'a ()>,
}

impl<'a> Peek<'a> {
    /// A tensor by the address of its TensorImpl pointer, which is what an at::Tensor is.
    ///
    /// # Safety
    /// `imp` holds the TensorImpl pointer of a live tensor.
    pub unsafe fn from_impl(imp: &'a usize) -> Peek<'a> {
        Peek { handle: std::ptr::from_ref(imp).cast_mut().cast(), _life: std::marker::PhantomData }
    }
    /// A tensor by its handle.
    ///
    /// # Safety
    /// `handle` is that of a live tensor.
    pub unsafe fn from_handle(handle: Handle) -> Peek<'a> {
        Peek { handle, _life: std::marker::PhantomData }
    }
    /// `at::Tensor*`.
    pub fn handle(&self) -> Handle {
        self.handle
    }
    fn number<T: Default>(&self, read: unsafe extern "C" fn(Handle, *mut T) -> i32) -> T {
        let mut value = T::default();
        // SAFETY: the tensor is live. These readers do not fail on a live tensor.
        unsafe { read(self.handle, &mut value) };
        value
    }
    fn list(&self, read: unsafe extern "C" fn(Handle, *mut *const i64) -> i32, len: usize) -> &'a [i64] {
        let mut pointer = std::ptr::null();
        // SAFETY: the tensor is live and has `len` sizes and strides, which live as long as it does.
        unsafe {
            if len == 0 || read(self.handle, &mut pointer) != 0 {
                return &[];
            }
            std::slice::from_raw_parts(pointer, len)
        }
    }
    fn sizes(&self) -> &'a [i64] {
        let dim: i64 = self.number(get().dim);
        self.list(get().sizes, dim as usize)
    }
    /// None for a tensor that has none, such as a sparse one.
    fn strides(&self, dim: usize) -> Option<&'a [i64]> {
        Some(self.list(get().strides, dim)).filter(|strides| strides.len() == dim)
    }
    /// Sizes.
    pub fn shape(&self) -> Vec<usize> {
        self.sizes().iter().map(|size| *size as usize).collect()
    }
    /// Distances between elements, in elements.
    pub fn stride(&self) -> Vec<usize> {
        let dim: i64 = self.number(get().dim);
        self.strides(dim as usize).unwrap_or_default().iter().map(|stride| *stride as usize).collect()
    }
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.number(get().numel) as usize
    }
    /// Elements of memory from the first to behind the last.
    pub fn span(&self) -> usize {
        let sizes = self.sizes();
        match self.strides(sizes.len()) {
            _ if sizes.contains(&0) => 0,
            Some(strides) => {
                1 + sizes.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum::<i64>() as usize
            }
            None => self.numel(),
        }
    }
    /// Element type, if it is one of ours.
    pub fn dtype(&self) -> Option<DType> {
        match self.number(get().dtype) {
            F16 => Some(DType::F16),
            F32 => Some(DType::F32),
            F64 => Some(DType::F64),
            BF16 => Some(DType::BF16),
            _ => None,
        }
    }
    /// Type of indices, if it is one of ours.
    pub fn index(&self) -> Option<Index> {
        match self.number(get().dtype) {
            I32 => Some(Index::I32),
            I64 => Some(Index::I64),
            _ => None,
        }
    }
    /// Element type, if elements of it can be moved.
    pub fn stored(&self) -> Option<&'static Stored> {
        Stored::of_code(self.number(get().dtype))
    }
    /// Device type and index.
    pub fn device(&self) -> (i32, i32) {
        (self.number(get().device_type), self.number(get().device_index))
    }
    /// First element.
    pub fn address(&self) -> *mut u8 {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the tensor is live.
        unsafe { (get().data_ptr)(self.handle, &mut pointer) };
        pointer.cast()
    }
    /// Whether rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        let sizes = self.sizes();
        self.strides(sizes.len()).is_some_and(|strides| is_contiguous(sizes, strides))
    }
    /// All that a list operator needs.
    pub fn describe(&self) -> Description {
        Description {
            numel: self.numel(),
            dtype: self.dtype(),
            contiguous: self.is_contiguous(),
            address: self.address(),
            device: self.device(),
        }
    }
    /// A contiguous copy.
    pub fn contiguous(&self) -> Result<Tensor> {
        let copy = Tensor::empty_code(self.sizes(), self.number(get().dtype), self.device())?;
        // SAFETY: both are live.
        check(unsafe { (get().copy)(copy.0, self.handle, 0) }, "copying a tensor")?;
        Ok(copy)
    }
}

fn is_contiguous(sizes: &[i64], strides: &[i64]) -> bool {
    let mut expected = 1;
    sizes.contains(&0)
        || sizes.iter().zip(strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= size;
            fits
        })
}

// SAFETY: an address and numbers.
unsafe impl Send for Description {}
// SAFETY: as above.
unsafe impl Sync for Description {}

/// What [`Peek::describe`] reads.
#[derive(Clone, Copy)]
pub struct Description {
    /// Number of elements.
    pub numel: usize,
    /// Element type, if it is one of ours.
    pub dtype: Option<DType>,
    /// Whether rows follow each other without gaps.
    pub contiguous: bool,
    /// First element.
    pub address: *mut u8,
    /// Device type and index.
    pub device: (i32, i32),
}

/// Codes of `c10::ScalarType`.
const I32: i32 = 3;
const I64: i32 = 4;
const F16: i32 = 5;
const F32: i32 = 6;
const F64: i32 = 7;
const BF16: i32 = 15;

const fn dtype_code(dtype: DType) -> i32 {
    match dtype {
        DType::F16 => F16,
        DType::F32 => F32,
        DType::F64 => F64,
        DType::BF16 => BF16,
    }
}

/// torch.get_num_threads(), where this torch shows it.
pub fn num_threads() -> Option<usize> {
    // SAFETY: reads a number.
    get().num_threads.map(|read| unsafe { read() }.max(1) as usize)
}

/// torch's current stream on a GPU.
pub fn current_cuda_stream(index: i32) -> Result<*mut c_void> {
    let shims = get();
    let read = shims.current_cuda_stream.get_or_init(|| {
        let library = open(&shims.library_dir, "torch_cuda").ok()?;
        // SAFETY: the type is that of the header.
        unsafe { library.get(b"aoti_torch_get_current_cuda_stream\0").ok().map(|read| *read) }
    });
    let read = read.ok_or_else(|| failed("looking up torch's CUDA stream"))?;
    let mut stream = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    check(unsafe { read(index, &mut stream) }, "reading torch's CUDA stream")?;
    Ok(stream)
}

/// `torch.linalg.qr(a, mode)`, or None where this torch cannot be called from here.
pub fn linalg_qr(a: &Tensor, mode: &str) -> Option<Result<(Tensor, Tensor)>> {
    let dispatcher = get().dispatcher.as_ref()?;
    let mut text = std::ptr::null_mut();
    let mut input = std::ptr::null_mut();
    // SAFETY: makes a string and a second handle of a live tensor, which the callee takes over; the stack has room for
    // two inputs and two outputs.
    unsafe {
        let made = (dispatcher.new_string)(mode.as_ptr().cast(), mode.len(), &mut text) == 0
            && (get().new_handle)(a.0, &mut input) == 0;
        if !made {
            return Some(Err(failed("making arguments for an operator")));
        }
        let mut stack = [input as Value, text as Value];
        let code = (dispatcher.call)(c"aten::linalg_qr".as_ptr(), c"".as_ptr(), stack.as_mut_ptr(), BUILD_VERSION);
        let outputs = check(code, "aten::linalg_qr").map(|()| stack.map(|value| Tensor(value as Handle)));
        Some(outputs.map(|[q, r]| (q, r)))
    }
}

/// Takes an optional value of a boxed call over: nothing, or a cell of the C++ heap with the value.
///
/// # Safety
/// The schema has an optional value there, and it is taken once.
pub unsafe fn take_cell(value: Value) -> Option<Value> {
    unsafe extern "C" {
        fn free(pointer: *mut c_void);
    }
    let cell = value as *mut Value;
    if cell.is_null() {
        return None;
    }
    // SAFETY: the caller's promise; operator new of every C++ runtime that torch ships with is malloc's.
    unsafe {
        let value = *cell;
        free(cell.cast());
        Some(value)
    }
}

/// Takes a list of a boxed call over.
///
/// # Safety
/// The schema has a list there, and it is taken once.
pub unsafe fn take_list(value: Value) -> Vec<Value> {
    let lists = get().lists.as_ref().expect("a torch that passes lists has these functions");
    let list = value as *mut c_void;
    let mut size = 0;
    // SAFETY: the caller's promise. None of these fails on a live list within its size.
    unsafe {
        (lists.size)(list, &mut size);
        let mut values = vec![0; size];
        for (i, value) in values.iter_mut().enumerate() {
            (lists.get)(list, i, value);
        }
        (lists.delete)(list);
        values
    }
}

/// Registers operators in torch's dispatcher under `metalcore::`. They stay for the life of the process.
pub fn register<'a>(operators: impl Iterator<Item = &'a Operator> + Clone) -> Result<()> {
    type Kernel = fn(&Operator) -> Boxed;
    const KERNELS: [(&CStr, Kernel); 2] = [(c"CPU", |operator| operator.cpu), (c"CUDA", |operator| operator.cuda)];
    let shims = get();
    let text = |text: &str| CString::new(text).expect("names have no zero byte");
    let (namespace, file) = (c"metalcore", text(file!()));
    // SAFETY: the strings live through the calls, which copy them; library objects are never freed.
    unsafe {
        let mut fragment = std::ptr::null_mut();
        check((shims.init_fragment)(namespace.as_ptr(), file.as_ptr(), line!(), &mut fragment), "making a library")?;
        for operator in operators.clone() {
            operator.check()?;
            let schema = text(&format!("{}{}", operator.name, operator.signature));
            check((shims.library_def)(fragment, schema.as_ptr()), &format!("defining {}", operator.name))?;
        }
        for (key, kernel) in KERNELS {
            let mut library = std::ptr::null_mut();
            let code = (shims.init_impl)(namespace.as_ptr(), key.as_ptr(), file.as_ptr(), line!(), &mut library);
            check(code, "making a library")?;
            for operator in operators.clone() {
                let name = text(operator.name);
                check((shims.library_impl)(library, name.as_ptr(), kernel(operator)), "registering a kernel")?;
            }
        }
    }
    Ok(())
}
