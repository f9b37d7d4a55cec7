//! Batched linear algebra and transformer training kernels for CPU, CUDA and Metal.
//!
//! An operation is a folder of [`ops`], named by PyTorch's own word: its document, its oracle, and its form on every
//! device stand side by side. A [`device`] is buffers and launches.

pub mod device;
mod dtype;
mod error;
pub mod kernels;
pub mod ops;
mod tensor;
#[cfg(test)]
mod testing;

pub use dtype::{DType, Element, Index, IndexElement};
pub use error::{Error, Result};
pub use tensor::{Tensor, View};

use std::path::PathBuf;
use std::sync::RwLock;

static CACHE_DIR: RwLock<Option<PathBuf>> = RwLock::new(None);

/// Where compiled kernels are kept: what [`set_cache_dir`] said, else `METALCORE_CACHE_DIR`, else the user's cache
/// directory + `metalcore`, else the directory for temporary files.
pub fn cache_dir() -> PathBuf {
    if let Some(path) = CACHE_DIR.read().expect("no holder panics").clone() {
        return path;
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("METALCORE_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("metalcore")))
        .or_else(|| {
            let folder = if cfg!(target_os = "macos") { "Library/Caches/metalcore" } else { ".cache/metalcore" };
            variable("HOME").map(|path| path.join(folder))
        })
        .unwrap_or_else(|| std::env::temp_dir().join("metalcore"))
}

/// Sets the place of compiled kernels; `None` goes back to the default.
pub fn set_cache_dir(path: Option<PathBuf>) {
    *CACHE_DIR.write().expect("no holder panics") = path;
}
