//! Kernel text to machine code: NVRTC, with a cache on disk.

use crate::device::gpu::{Spec, Target};
use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::path::PathBuf;

fn failed(spec: &Spec, reason: impl std::fmt::Display) -> Error {
    Error::Device { device: "cuda", reason: format!("compiling {}: {reason}", spec.name()) }
}

/// Machine code of a kernel for an architecture, from the cache or from NVRTC.
pub(super) fn cubin(spec: &Spec, architecture: &str) -> Result<Vec<u8>> {
    // SAFETY: only looks for a library by its name.
    if !unsafe { sys::is_culib_present() } {
        return Err(failed(spec, "NVRTC is not installed (libnvrtc.so; the Python package nvidia-cuda-nvrtc has it)"));
    }
    let text = spec.text(Target::Cuda);
    let path = cache_path(&text, architecture);
    if let Some(cubin) = path.as_ref().and_then(|path| std::fs::read(path).ok()).filter(|c| c.starts_with(b"\x7fELF")) {
        return Ok(cubin);
    }
    let cubin = compile(spec, &text, architecture)?;
    if let Some(path) = path {
        store(&path, &cubin);
    }
    Ok(cubin)
}

fn cache_path(text: &str, architecture: &str) -> Option<PathBuf> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().ok()?;
    let mut hash = Sha256::new();
    hash.update(format!("{major}.{minor} {architecture}\n{text}"));
    let name: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Some(crate::cache_dir().join("cuda").join(name + ".cubin"))
}

/// A cache that cannot be written is no error: the code is kept in memory.
fn store(path: &std::path::Path, cubin: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let stored = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&part, cubin))
        .and_then(|()| std::fs::rename(&part, path));
    drop(stored);
}

fn compile(spec: &Spec, text: &str, architecture: &str) -> Result<Vec<u8>> {
    let source = CString::new(text).map_err(|_| failed(spec, "the text has a zero byte"))?;
    let program = result::create_program(&source, None).map_err(|e| failed(spec, format!("{e:?}")))?;
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
    // SAFETY: `program` is alive until it is destroyed below, once.
    let compiled = unsafe {
        let compiled = result::compile_program(program, &options).and_then(|()| {
            let mut size = 0;
            sys::nvrtcGetCUBINSize(program, &mut size).result()?;
            let mut cubin = vec![0u8; size];
            sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
            Ok(cubin)
        });
        let compiled = compiled.map_err(|error| {
            let log = result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
            failed(spec, format!("{error:?}\n{}", String::from_utf8_lossy(&log)))
        });
        result::destroy_program(program).map_err(|e| failed(spec, format!("{e:?}")))?;
        compiled?
    };
    Ok(compiled)
}
