//! Where an operator's tensors come from: torch's dispatcher (cpu, cuda) or Python objects (mps, emulator). An operator
//! is written once over this trait.

use crate::shim::{self, Tensor};
use metalcore::device::{Device, cpu, cuda};
use metalcore::{DType, Error, Index, Result};
use std::sync::Arc;

/// The buffer type of a host.
pub type BufferOf<H> = <<H as Host>::Device as Device>::Buffer;

/// Four results of an operator.
pub type Four<H> = (<H as Host>::Tensor, <H as Host>::Tensor, <H as Host>::Tensor, <H as Host>::Tensor);

/// An element type of torch, as something to be moved.
pub struct Stored {
    /// Of `c10::ScalarType`.
    pub code: i32,
    /// In the module torch.
    pub name: &'static str,
    /// Size of an element.
    pub bytes: usize,
    /// 16 bytes of NaN (and no imaginary part), or of 0 where there is none.
    pub nan: [u32; 4],
}

const fn stored(code: i32, name: &'static str, bytes: usize, nan: [u32; 4]) -> Stored {
    Stored { code, name, bytes, nan }
}
/// What torch has kernels for.
const STORED: [Stored; 20] = [
    stored(0, "uint8", 1, [0; 4]),
    stored(1, "int8", 1, [0; 4]),
    stored(2, "int16", 2, [0; 4]),
    stored(3, "int32", 4, [0; 4]),
    stored(4, "int64", 8, [0; 4]),
    stored(5, "float16", 2, [0x7e00_7e00; 4]),
    stored(6, "float32", 4, [0x7fc0_0000; 4]),
    stored(7, "float64", 8, [0, 0x7ff8_0000, 0, 0x7ff8_0000]),
    stored(8, "complex32", 4, [0x7e00; 4]),
    stored(9, "complex64", 8, [0x7fc0_0000, 0, 0x7fc0_0000, 0]),
    stored(10, "complex128", 16, [0, 0x7ff8_0000, 0, 0]),
    stored(11, "bool", 1, [0; 4]),
    stored(15, "bfloat16", 2, [0x7fc0_7fc0; 4]),
    stored(23, "float8_e5m2", 1, [0x7f7f_7f7f; 4]),
    stored(24, "float8_e4m3fn", 1, [0x7f7f_7f7f; 4]),
    stored(25, "float8_e5m2fnuz", 1, [0x8080_8080; 4]),
    stored(26, "float8_e4m3fnuz", 1, [0x8080_8080; 4]),
    stored(27, "uint16", 2, [0; 4]),
    stored(28, "uint32", 4, [0; 4]),
    stored(29, "uint64", 8, [0; 4]),
];

impl Stored {
    /// By its code.
    pub fn of_code(code: i32) -> Option<&'static Stored> {
        STORED.iter().find(|stored| stored.code == code)
    }
    /// By its name.
    pub fn of_name(name: &str) -> Option<&'static Stored> {
        STORED.iter().find(|stored| stored.name == name)
    }
}

/// Makes and looks at tensors on one device.
pub trait Host {
    /// Runs the kernels.
    type Device: Device;
    /// A tensor that is owned.
    type Tensor;

    /// The device of this call, with torch's stream and memory.
    fn device(&self) -> &Self::Device;
    /// Sizes.
    fn shape(&self, tensor: &Self::Tensor) -> Vec<usize>;
    /// Distances between elements, in elements.
    fn strides(&self, tensor: &Self::Tensor) -> Vec<usize>;
    /// Element type, if it is one of ours.
    fn dtype(&self, tensor: &Self::Tensor) -> Option<DType>;
    /// Type of indices, if it is one of ours.
    fn index(&self, tensor: &Self::Tensor) -> Option<Index>;
    /// Its memory from its first element to its last, while the tensor lives.
    fn buffer(&self, tensor: &Self::Tensor) -> BufferOf<Self>;
    /// An uninitialised tensor.
    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Self::Tensor>;
    /// The same of indices.
    fn empty_index(&self, shape: &[usize], index: Index) -> Result<Self::Tensor>;
    /// Element type, if elements of it can be moved.
    fn stored(&self, tensor: &Self::Tensor) -> Option<&'static Stored>;
    /// An uninitialised tensor of such a type.
    fn empty_stored(&self, shape: &[usize], stored: &Stored) -> Result<Self::Tensor>;
    /// A copy, whose rows follow each other without gaps.
    fn copy(&self, tensor: &Self::Tensor) -> Result<Self::Tensor>;
    /// Whether rows follow each other without gaps.
    fn is_contiguous(&self, tensor: &Self::Tensor) -> bool;
    /// The tensor itself if it is contiguous, else a copy.
    fn contiguous(&self, tensor: Self::Tensor) -> Result<Self::Tensor>;

    /// Whether a tensor lives where this host's device is.
    fn is_here(&self, tensor: &Self::Tensor) -> bool;

    /// A ValueError for a tensor of another device.
    fn check_place(&self, op: &'static str, argument: &'static str, tensor: &Self::Tensor) -> Result<()> {
        if self.is_here(tensor) {
            return Ok(());
        }
        let (got, expected) = ("a tensor of another device".to_owned(), "the device of the first tensor".to_owned());
        Err(Error::Argument { op, argument, got, expected })
    }

    /// A ValueError for another device or shape, a TypeError for another type.
    fn check_same(
        &self,
        op: &'static str,
        (argument, tensor): (&'static str, &Self::Tensor),
        (shape, dtype): (&[usize], DType),
    ) -> Result<()> {
        self.check_place(op, argument, tensor)?;
        let got = self.shape(tensor);
        if got != shape {
            let (got, expected) = (format!("shape {got:?}"), format!("shape {shape:?}"));
            return Err(Error::Argument { op, argument, got, expected });
        }
        let got = self.known_dtype(op, argument, tensor)?;
        if got != dtype {
            return Err(Error::DType { op, argument, got: got.to_string(), expected: dtype.to_string() });
        }
        Ok(())
    }

    /// Type of indices, or a TypeError.
    fn known_index(&self, op: &'static str, argument: &'static str, tensor: &Self::Tensor) -> Result<Index> {
        let (got, expected) = ("another one".to_owned(), "int32 or int64".to_owned());
        self.index(tensor).ok_or(Error::DType { op, argument, got, expected })
    }

    /// Element type, or a TypeError.
    fn known_dtype(&self, op: &'static str, argument: &'static str, tensor: &Self::Tensor) -> Result<DType> {
        let wrong = |got: &str, expected: &str| Error::DType {
            op,
            argument,
            got: got.to_owned(),
            expected: expected.to_owned(),
        };
        match self.dtype(tensor) {
            None => Err(wrong("another one", "float16, bfloat16, float32 or float64")),
            Some(DType::F64) if !self.device().caps().float64 => Err(wrong("float64", "one that the device mps has")),
            Some(dtype) => Ok(dtype),
        }
    }
}

/// A device that torch's C shims reach: its tensors have addresses.
pub struct Shim<D> {
    device: D,
    place: (i32, i32),
}

impl Shim<cpu::Cpu> {
    /// The host, with torch's number of threads.
    pub fn cpu() -> Shim<cpu::Cpu> {
        Shim { device: cpu::Cpu::with_threads(crate::config::threads()), place: (shim::CPU, -1) }
    }
}

/// torch's caching allocator.
struct TorchMemory(i32);
impl cuda::Memory for TorchMemory {
    fn alloc(&self, bytes: usize) -> Result<(u64, Box<dyn Send + Sync>)> {
        let tensor = Tensor::scratch(bytes.max(1), (shim::CUDA, self.0))?;
        Ok((tensor.peek().address() as u64, Box::new(tensor)))
    }
}

impl Shim<cuda::Cuda> {
    /// A GPU, with torch's current stream and memory.
    pub fn cuda(index: i32) -> Result<Shim<cuda::Cuda>> {
        let stream = shim::current_cuda_stream(index)?;
        // SAFETY: the stream is torch's, of the primary context, and outlives the call.
        let device = unsafe { cuda::Cuda::foreign(index as usize, stream, Arc::new(TorchMemory(index)))? };
        Ok(Shim { device, place: (shim::CUDA, index) })
    }
}

/// A buffer over memory of torch.
pub trait Foreign: Device {
    /// # Safety
    /// As the `foreign` constructor of the device's buffer.
    unsafe fn foreign(address: *mut u8, bytes: usize) -> Self::Buffer;
}
impl Foreign for cpu::Cpu {
    unsafe fn foreign(address: *mut u8, bytes: usize) -> cpu::Buffer {
        // SAFETY: the caller's promise.
        unsafe { cpu::Buffer::foreign(address, bytes) }
    }
}
impl Foreign for cuda::Cuda {
    unsafe fn foreign(address: *mut u8, bytes: usize) -> cuda::Buffer {
        // SAFETY: the caller's promise.
        unsafe { cuda::Buffer::foreign(address as u64, bytes) }
    }
}

impl<D: Foreign> Host for Shim<D> {
    type Device = D;
    type Tensor = Tensor;

    fn device(&self) -> &D {
        &self.device
    }
    fn shape(&self, tensor: &Tensor) -> Vec<usize> {
        tensor.peek().shape()
    }
    fn strides(&self, tensor: &Tensor) -> Vec<usize> {
        tensor.peek().stride()
    }
    fn dtype(&self, tensor: &Tensor) -> Option<DType> {
        tensor.peek().dtype()
    }
    fn index(&self, tensor: &Tensor) -> Option<Index> {
        tensor.peek().index()
    }
    fn buffer(&self, tensor: &Tensor) -> D::Buffer {
        let peek = tensor.peek();
        let bytes = peek.span() * peek.stored().map_or(1, |stored| stored.bytes);
        // SAFETY: the tensor outlives the buffer; on a GPU torch frees memory in stream order.
        unsafe { D::foreign(peek.address(), bytes) }
    }
    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::empty(shape, dtype, self.place)
    }
    fn empty_index(&self, shape: &[usize], index: Index) -> Result<Tensor> {
        Tensor::empty_index(shape, index, self.place)
    }
    fn stored(&self, tensor: &Tensor) -> Option<&'static Stored> {
        tensor.peek().stored()
    }
    fn empty_stored(&self, shape: &[usize], stored: &Stored) -> Result<Tensor> {
        Tensor::empty_stored(shape, stored, self.place)
    }
    fn copy(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.peek().contiguous()
    }
    fn is_here(&self, tensor: &Tensor) -> bool {
        tensor.peek().device() == self.place
    }
    fn is_contiguous(&self, tensor: &Tensor) -> bool {
        tensor.peek().is_contiguous()
    }
    fn contiguous(&self, tensor: Tensor) -> Result<Tensor> {
        // Aligned as torch allocates: another form of a kernel may sum in another order, and a view gives the same bits.
        let aligned = (tensor.peek().address() as usize).is_multiple_of(16);
        if aligned && tensor.peek().is_contiguous() { Ok(tensor) } else { tensor.peek().contiguous() }
    }
}
