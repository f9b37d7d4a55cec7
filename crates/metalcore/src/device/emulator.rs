//! The emulator as a device: kernels run on the CPU, thread by thread, with every rule of Metal checked.

use super::{
    Caps, Device,
    cpu::{Buffer, Cpu},
    gpu::{Arg, Gpu, Spec, Target},
};
use crate::error::{Error, Result};
use metalcore_emulator::{Arg as EmulatorArg, Library, Options};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Runs the GPU kernels on the CPU.
#[derive(Clone)]
pub struct Emulator {
    memory: Cpu,
    caps: Caps,
    libraries: Arc<Mutex<HashMap<Spec, Arc<Library>>>>,
    cache_dir: PathBuf,
    options: Options,
}

impl Emulator {
    /// An emulator with every check on, and compiled kernels kept under the cache directory.
    pub fn new() -> Emulator {
        Emulator::with_options(Options::default())
    }

    /// The same with another schedule or fewer checks.
    pub fn with_options(options: Options) -> Emulator {
        Emulator {
            memory: Cpu::new(),
            caps: Caps { kind: "emulator", threadgroup_bytes: 32768, units: 8, float64: false },
            libraries: Arc::default(),
            cache_dir: crate::cache_dir().join("emulator"),
            options,
        }
    }

    fn library(&self, spec: &Spec) -> Result<Arc<Library>> {
        let mut libraries = self.libraries.lock().expect("no holder panics");
        if let Some(library) = libraries.get(spec) {
            return Ok(library.clone());
        }
        let library = Library::compile(&spec.text(Target::Emulator), &self.cache_dir).map_err(failed)?;
        let library = Arc::new(library);
        libraries.insert(spec.clone(), library.clone());
        Ok(library)
    }
}

impl Default for Emulator {
    fn default() -> Self {
        Emulator::new()
    }
}

fn failed(error: impl ToString) -> Error {
    Error::Device { device: "emulator", reason: error.to_string() }
}

impl Device for Emulator {
    type Buffer = Buffer;

    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.memory.alloc(bytes)
    }
    fn write(&self, dst: &Buffer, at: usize, src: &[u8]) -> Result<()> {
        self.memory.write(dst, at, src)
    }
    fn read(&self, src: &Buffer, at: usize, dst: &mut [u8]) -> Result<()> {
        self.memory.read(src, at, dst)
    }
    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

impl Gpu for Emulator {
    fn launch(&self, spec: &Spec, groups: usize, args: &[Arg<'_, Buffer>]) -> Result<()> {
        let library = self.library(spec)?;
        let args: Vec<EmulatorArg<'_>> = args
            .iter()
            .map(|arg| match arg {
                Arg::Buffer(buffer) => EmulatorArg::Buffer { pointer: buffer.pointer(), bytes: buffer.bytes() },
                Arg::Params(words) => {
                    // SAFETY: any four bytes of a u32 slice are readable as bytes.
                    EmulatorArg::Params(unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 4) })
                }
            })
            .collect();
        // SAFETY: each buffer is alive and as long as it says; the emulator checks every access against that.
        unsafe { library.launch(spec.entry, groups as u32, spec.threads, &args, &self.options) }.map_err(failed)?;
        Ok(())
    }

    fn aligned(&self, buffer: &Buffer, bytes: u64) -> bool {
        (buffer.pointer() as u64).is_multiple_of(bytes)
    }

    fn address(&self, _: &Buffer) -> Option<u64> {
        None // as Metal
    }
}
