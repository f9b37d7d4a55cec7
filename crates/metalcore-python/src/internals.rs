//! C++ functions of libtorch by their mangled names, for what its C shims do not offer. Where one is missing, nothing
//! fails: who wants them goes through Python.

use crate::shim::{Handle, Peek};
use libloading::Library;
use metalcore::DType;

/// The functions: none of them throws on the tensors it is called with.
pub struct Internals {
    /// `const at::Tensor& c10::TensorImpl::grad() const`, of a TensorImpl.
    grad: unsafe extern "C" fn(usize) -> Handle,
    /// `bool at::native::is_neg(const at::Tensor&)`.
    is_neg: unsafe extern "C" fn(Handle) -> bool,
    /// `void torch::autograd::impl::bump_version(const at::Tensor&)`.
    bump_version: unsafe extern "C" fn(Handle),
    /// A C shim, but of newer torch.
    is_contiguous: unsafe extern "C" fn(Handle, *mut bool) -> i32,
}

/// What a step needs to know of a gradient.
#[derive(Clone, Copy)]
pub struct Gradient {
    /// Its type.
    pub dtype: DType,
    /// Number of elements.
    pub numel: usize,
    /// First element.
    pub address: usize,
}

impl Internals {
    /// The functions, if this torch has all of them.
    ///
    /// # Safety
    /// `library` is libtorch_cpu, which depends on libc10.
    pub unsafe fn load(library: &Library) -> Option<Internals> {
        // SAFETY: the types are those of the headers of torch 2.7 and later; a reference is an address.
        unsafe {
            Some(Internals {
                grad: *library.get(b"_ZNK3c1010TensorImpl4gradEv\0").ok()?,
                is_neg: *library.get(b"_ZN2at6native6is_negERKNS_6TensorE\0").ok()?,
                bump_version: *library.get(b"_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE\0").ok()?,
                is_contiguous: *library.get(b"aoti_torch_is_contiguous\0").ok()?,
            })
        }
    }

    /// The gradient of a leaf, without a Python object; None where it has none, or one that is not numbers of our types
    /// without gaps.
    ///
    /// # Safety
    /// `imp` is the TensorImpl of a live tensor.
    pub unsafe fn gradient(&self, imp: usize) -> Option<Gradient> {
        // SAFETY: the caller's promise; the tensor holds its gradient.
        let gradient = unsafe { Peek::from_handle((self.grad)(imp)) };
        let dtype = gradient.dtype()?; // first: no gradient is a tensor without dtype, which has no other properties
        // SAFETY: live, as above. A lazily negated tensor is another number in memory.
        let plain = unsafe { self.is_contiguous(gradient) && !(self.is_neg)(gradient.handle()) };
        plain.then(|| Gradient { dtype, numel: gradient.numel(), address: gradient.address() as usize })
    }

    /// Whether the elements of a tensor follow each other without gaps.
    pub fn is_contiguous(&self, tensor: Peek<'_>) -> bool {
        let mut contiguous = false;
        // SAFETY: the tensor is live. It stays false where the question fails, as for a sparse tensor.
        unsafe { (self.is_contiguous)(tensor.handle(), &mut contiguous) };
        contiguous
    }

    /// Tells autograd that a tensor has changed.
    ///
    /// # Safety
    /// The tensor has a version: it was not made in inference mode.
    pub unsafe fn bump_version(&self, tensor: Peek<'_>) {
        // SAFETY: live, and the caller's promise.
        unsafe { (self.bump_version)(tensor.handle()) };
    }
}
