//! What the tests share: kernel texts, memory, launches.

use std::path::Path;

use metalcore_emulator::{Arg, Error, Library, Options, Stats};

const COMMON: &str = include_str!("../../../metalcore/src/device/gpu/prelude/common.h");

/// Compiles a kernel file behind `#define` lines.
pub fn library(defines: &[(&str, u32)], file: &str, body: &str) -> Result<Library, Error> {
    let mut text: String = defines.iter().map(|(name, value)| format!("#define {name} {value}\n")).collect();
    text += "#line 1 \"common.h\"\n";
    text += COMMON;
    text += &format!("#line 1 \"{file}\"\n{body}");
    Library::compile(&text, Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Numbers that a kernel can hold.
pub trait Number: Copy + Default {}
impl Number for f32 {}
impl Number for f64 {}
impl Number for u16 {}
impl Number for u32 {}

/// A buffer as a device would give it: aligned to 64 bytes.
pub struct Memory {
    /// 64 bytes longer than the buffer, which begins at the first multiple of 64.
    storage: Vec<u8>,
    bytes: usize,
}

impl Memory {
    pub fn new<T: Number>(count: usize) -> Memory {
        let bytes = count * size_of::<T>();
        Memory { storage: vec![0; bytes + 64], bytes }
    }

    pub fn of<T: Number>(values: &[T]) -> Memory {
        let mut memory = Memory::new::<T>(values.len());
        // SAFETY: The buffer has the size of `values`, which is of plain numbers, and is aligned to them.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), memory.pointer().cast::<T>(), values.len()) };
        memory
    }

    pub fn to<T: Number>(&self) -> Vec<T> {
        let mut values = vec![T::default(); self.bytes / size_of::<T>()];
        // SAFETY: As above; a number may have any bits.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.storage[self.offset()..].as_ptr().cast::<T>(),
                values.as_mut_ptr(),
                values.len(),
            )
        };
        values
    }

    pub fn arg(&mut self) -> Arg<'static> {
        Arg::Buffer { pointer: self.pointer(), bytes: self.bytes }
    }

    fn pointer(&mut self) -> *mut u8 {
        let offset = self.offset();
        self.storage[offset..].as_mut_ptr()
    }

    fn offset(&self) -> usize {
        self.storage.as_ptr().align_offset(64)
    }
}

/// Launches a kernel with buffers and then its parameter block.
pub fn run(
    library: &Library,
    name: &str,
    groups: u32,
    memory: &mut [&mut Memory],
    params: &[u32],
    options: &Options,
) -> Result<Stats, Error> {
    let threads = library.kernels().iter().find(|kernel| kernel.name == name).map_or(0, |kernel| kernel.threads);
    let block: Vec<u8> = params.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut args: Vec<Arg> = memory.iter_mut().map(|memory| memory.arg()).collect();
    args.push(Arg::Params(&block));
    // SAFETY: The buffers are borrowed for the call, and hold plain numbers.
    unsafe { library.launch(name, groups, threads, &args, options) }
}
