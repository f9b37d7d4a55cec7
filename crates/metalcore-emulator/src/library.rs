//! Kernel libraries: compiled, loaded, launched.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::Recipe;
use crate::compiler::{Compiler, KERNEL_FLAGS, RUNTIME_FLAGS};
use crate::error::Error;
use crate::{Arg, ArgInfo, ArgKind, KernelInfo, Options, Schedule, Stats, ffi, sources};

/// The kernels of one text, compiled and loaded. Cheap to clone; stays loaded until the process ends.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    loaded: &'static Loaded,
}

#[derive(Debug)]
struct Loaded {
    kernels: Vec<KernelInfo>,
    entries: Vec<Entry>,
    launch: ffi::LaunchFn,
    // What the pointers and functions above belong to.
    _library: libloading::Library,
}

/// A kernel as the runtime knows it, and the names of its arguments.
#[derive(Debug)]
struct Entry {
    kernel: *const ffi::Kernel,
    names: Vec<CString>,
}
// SAFETY: The kernel is constant memory of a library that is never unloaded.
unsafe impl Send for Entry {}
// SAFETY: As above; nothing writes to it.
unsafe impl Sync for Entry {}

impl Library {
    /// Compiles a text: `#define` lines, the shared prelude and the kernels, each part behind a `#line`. The
    /// emulator adds its own prelude. A text compiled before is taken from this process, or from `cache_dir`.
    pub fn compile(source: &str, cache_dir: &Path) -> Result<Library, Error> {
        type Slot = Arc<Mutex<Option<&'static Loaded>>>;
        static LIBRARIES: Mutex<Option<HashMap<String, Slot>>> = Mutex::new(None);

        let compiler = Compiler::get()?;
        let text = sources::kernel_text(source);
        let recipe = Recipe { headers: &sources::KERNEL_HEADERS, text: &text, flags: &KERNEL_FLAGS };
        let key = recipe.key(compiler);
        let slot = lock(&LIBRARIES).get_or_insert_default().entry(key.clone()).or_default().clone();
        // Held while compiling: who else wants this text waits for it, who wants another does not.
        let mut slot = lock(&slot);
        if slot.is_none() {
            let library = recipe.load(compiler, &key, cache_dir)?;
            *slot = Some(Box::leak(Box::new(Loaded::new(library, runtime(compiler, cache_dir)?)?)));
        }
        Ok(Library { loaded: slot.expect("filled above") })
    }

    /// The kernels of the text, in its order.
    pub fn kernels(&self) -> &[KernelInfo] {
        &self.loaded.kernels
    }

    /// Runs `groups` groups of `threads` threads, and returns when they are done.
    ///
    /// # Errors
    /// What the kernel does wrong, or what is wrong with the arguments. Outputs are then incomplete.
    ///
    /// # Safety
    /// Each buffer is valid for its bytes during the call: for reads where the kernel declares `IN`, else for
    /// reads and writes, and nothing else in the process uses it meanwhile. Its bytes may hold anything, and
    /// after the call its type must allow every bit pattern.
    pub unsafe fn launch(
        &self,
        name: &str,
        groups: u32,
        threads: u32,
        args: &[Arg<'_>],
        options: &Options,
    ) -> Result<Stats, Error> {
        let kernels = &self.loaded.kernels;
        let at = kernels.iter().position(|kernel| kernel.name == name).ok_or_else(|| Error::NoSuchKernel {
            name: name.to_owned(),
            known: kernels.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        check_kinds(&kernels[at], args)?;
        let entry = &self.loaded.entries[at];
        let arguments: Vec<ffi::Argument> = args.iter().zip(&entry.names).map(argument).collect();
        let options = options.into();
        let mut stats = ffi::Stats::default();
        let mut error = [0u8; 2048];
        // SAFETY: The kernel belongs to a loaded library, there are as many arguments as it takes, and their memory
        // is valid by this function's contract. The text of an error is cut to its length and ended by a zero.
        let failed = unsafe {
            (self.loaded.launch)(
                entry.kernel,
                groups,
                threads,
                arguments.len() as u32,
                arguments.as_ptr(),
                &options,
                &mut stats,
                error.as_mut_ptr().cast::<c_char>(),
                error.len(),
            )
        };
        if failed != 0 {
            let text = CStr::from_bytes_until_nul(&error).expect("ended by the runtime");
            return Err(Error::Launch(text.to_string_lossy().into_owned()));
        }
        Ok(Stats {
            switches: stats.switches,
            barriers: stats.barriers,
            simd_ops: stats.simd_operations,
            threadgroup_bytes: stats.threadgroup_bytes,
        })
    }
}

impl Loaded {
    fn new(library: libloading::Library, runtime: &'static RuntimeLibrary) -> Result<Loaded, Error> {
        // SAFETY: Our kernel libraries export this function with this type.
        let kernels = unsafe { library.get::<ffi::KernelsFn>(b"metalcore_emulator_kernels\0")? };
        // SAFETY: The table is constant memory of the runtime, which is never unloaded.
        let mut kernel = unsafe { kernels((runtime.table)()) };
        let mut found = Vec::new();
        // SAFETY: The list is made of constant memory of the library, and ends with a null pointer.
        while let Some(next) = unsafe { kernel.as_ref() } {
            found.push((describe(next), kernel));
            kernel = next.next;
        }
        found.reverse(); // each kernel was put in front of those before it
        let entries = found
            .iter()
            .map(|(info, kernel)| Entry {
                kernel: *kernel,
                names: info.args.iter().map(|arg| c_name(&arg.name)).collect(),
            })
            .collect();
        let kernels = found.into_iter().map(|(info, _)| info).collect();
        Ok(Loaded { kernels, entries, launch: runtime.launch, _library: library })
    }
}

/// The loaded runtime, one for the process.
struct RuntimeLibrary {
    table: ffi::RuntimeFn,
    launch: ffi::LaunchFn,
    _library: libloading::Library,
}

fn runtime(compiler: &Compiler, cache_dir: &Path) -> Result<&'static RuntimeLibrary, Error> {
    static RUNTIME: Mutex<Option<&'static RuntimeLibrary>> = Mutex::new(None);
    let mut runtime = lock(&RUNTIME);
    if let Some(runtime) = *runtime {
        return Ok(runtime);
    }
    let recipe = Recipe { headers: &sources::RUNTIME_HEADERS, text: sources::RUNTIME, flags: &RUNTIME_FLAGS };
    let library = recipe.load(compiler, &recipe.key(compiler), cache_dir)?;
    // SAFETY: The runtime exports these functions with these types.
    let (table, launch) = unsafe {
        (
            *library.get::<ffi::RuntimeFn>(b"metalcore_emulator_runtime\0")?,
            *library.get::<ffi::LaunchFn>(b"metalcore_emulator_launch\0")?,
        )
    };
    Ok(runtime.insert(Box::leak(Box::new(RuntimeLibrary { table, launch, _library: library }))))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What they guard is whole at every moment, so a panic elsewhere does not matter.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn describe(kernel: &ffi::Kernel) -> KernelInfo {
    // SAFETY: Both are string literals of the library.
    let (name, signature) = unsafe { (text(kernel.name), text(kernel.signature)) };
    // SAFETY: The kernel says how many there are.
    let arguments = unsafe { std::slice::from_raw_parts(kernel.arguments, kernel.argument_count as usize) };
    let args = arguments
        .iter()
        .zip(parameter_names(&signature))
        .map(|(argument, name)| ArgInfo {
            name,
            kind: kind(argument.kind),
            element_bytes: argument.element_bytes as usize,
        })
        .collect();
    KernelInfo { name, threads: kernel.threads, args }
}

/// # Safety
/// `pointer` is a C string.
unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: By the contract.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("made from a C string")
}

fn kind(code: u32) -> ArgKind {
    match code {
        0 => ArgKind::In,
        1 => ArgKind::Out,
        2 => ArgKind::InOut,
        _ => ArgKind::Params,
    }
}

/// The names in a C parameter list: the last word before each comma that no bracket encloses.
fn parameter_names(signature: &str) -> Vec<String> {
    let mut depth = 0;
    signature
        .split(|c| {
            match c {
                '<' | '(' => depth += 1,
                '>' | ')' => depth -= 1,
                _ => {}
            }
            c == ',' && depth == 0
        })
        .map(|parameter| parameter.split_whitespace().next_back().unwrap_or_default().to_owned())
        .collect()
}

fn check_kinds(kernel: &KernelInfo, args: &[Arg<'_>]) -> Result<(), Error> {
    if args.len() != kernel.args.len() {
        return Err(Error::Launch(format!(
            "{}: {} arguments, kernel takes {}",
            kernel.name,
            args.len(),
            kernel.args.len()
        )));
    }
    for (info, arg) in kernel.args.iter().zip(args) {
        if (info.kind == ArgKind::Params) != matches!(arg, Arg::Params(_)) {
            let wanted = if info.kind == ArgKind::Params { "a parameter block" } else { "a buffer" };
            return Err(Error::Launch(format!("{}: {} is {wanted}", kernel.name, info.name)));
        }
    }
    Ok(())
}

fn argument((arg, name): (&Arg<'_>, &CString)) -> ffi::Argument {
    let (pointer, bytes) = match *arg {
        Arg::Buffer { pointer, bytes } => (pointer.cast::<c_void>(), bytes),
        Arg::Params(block) => (block.as_ptr().cast_mut().cast::<c_void>(), block.len()),
    };
    ffi::Argument { pointer, bytes: bytes as u64, name: name.as_ptr() }
}

impl From<&Options> for ffi::Options {
    fn from(options: &Options) -> ffi::Options {
        let (schedule, seed) = match options.schedule {
            Schedule::Forward => (0, 0),
            Schedule::Reverse => (1, 0),
            Schedule::Random(seed) => (2, seed),
        };
        ffi::Options {
            seed,
            schedule,
            workers: options.workers,
            check_threadgroup: options.check_threadgroup.into(),
            check_device: options.check_device.into(),
            threadgroup_limit: options.threadgroup_limit,
            flush_denormals: options.flush_denormals.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parameter_names;

    #[test]
    fn parameter_names_are_found_behind_nested_types() {
        let signature = "::emu::Buffer<0, const pair<a, b>, ::emu::In> A, const ::emu::Block<1, qr_params> p";
        assert_eq!(parameter_names(signature), ["A", "p"]);
    }
}
