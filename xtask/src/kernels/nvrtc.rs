//! NVIDIA's run-time compiler.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

use anyhow::{Result, bail};
use libloading::Library;

use crate::python;

/// A kernel whose spills are justified defines this word to the reason.
const ALLOW_SPILL: &str = "#define GK_ALLOW_SPILL ";

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type LogSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Log = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// The loaded compiler.
pub struct Nvrtc {
    create: Create,
    compile: Compile,
    log_size: LogSize,
    log: Log,
    destroy: Destroy,
    version: String,
    _library: Library,
}

impl Nvrtc {
    /// Loads it from `METALCORE_NVRTC`, from the packages of the Python in `METALCORE_PYTHON`, or from the system.
    pub fn load() -> Result<Nvrtc> {
        if let Some(named) = std::env::var_os("METALCORE_NVRTC") {
            // SAFETY: The user names it as NVRTC, whose initialisers have no conditions.
            let library = unsafe { Library::new(&named) };
            return Nvrtc::new(library.map_err(|error| anyhow::anyhow!("METALCORE_NVRTC: {error}"))?);
        }
        let from_python = python::package_folders().into_iter().flat_map(|folder| {
            let nvidia = folder.join("nvidia");
            [nvidia.join("cu13/lib/libnvrtc.so.13"), nvidia.join("cuda_nvrtc/lib/libnvrtc.so.12")]
        });
        let from_system = ["libnvrtc.so.13", "libnvrtc.so.12"].map(PathBuf::from);
        // SAFETY: As above.
        let open = |path: PathBuf| unsafe { Library::new(path) }.ok();
        match from_python.chain(from_system).find_map(open) {
            Some(library) => Nvrtc::new(library),
            None => bail!(
                "NVRTC was not found: `pip install nvidia-cuda-nvrtc` into the Python named by METALCORE_PYTHON, \
                 or name libnvrtc.so in METALCORE_NVRTC"
            ),
        }
    }

    fn new(library: Library) -> Result<Nvrtc> {
        // SAFETY: The names and types of NVRTC's documentation.
        unsafe {
            let version = library.get::<Version>(b"nvrtcVersion\0")?;
            let (mut major, mut minor) = (0, 0);
            version(&mut major, &mut minor);
            Ok(Nvrtc {
                create: *library.get(b"nvrtcCreateProgram\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                log: *library.get(b"nvrtcGetProgramLog\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                version: format!("NVRTC {major}.{minor}"),
                _library: library,
            })
        }
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compiles a text to machine code. Errors, warnings and register spills are findings.
    pub fn check(&self, text: &str, architecture: &str) -> Result<Vec<String>> {
        let (compiled, log) = self.compile(text, architecture)?;
        let mut findings: Vec<String> =
            log.lines().filter(|line| is_complaint(line)).map(|line| line.trim().to_owned()).collect();
        if !text.contains(ALLOW_SPILL) {
            findings.extend(spills(&log));
        }
        if !compiled && findings.is_empty() {
            findings.push(log);
        }
        Ok(findings)
    }

    fn compile(&self, text: &str, architecture: &str) -> Result<(bool, String)> {
        let text = CString::new(text)?;
        let options = [
            CString::new(format!("--gpu-architecture={architecture}"))?,
            c"-std=c++17".into(),
            c"--ptxas-options=-v".into(),
        ];
        let options = options.each_ref().map(|option| option.as_ptr());
        let mut program = ptr::null_mut();
        // SAFETY: The strings outlive the calls, and a program is used between its creation and destruction only.
        unsafe {
            if (self.create)(&mut program, text.as_ptr(), c"kernel.cu".as_ptr(), 0, ptr::null(), ptr::null()) != 0 {
                bail!("NVRTC cannot create a program");
            }
            let status = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let mut size = 0;
            (self.log_size)(program, &mut size);
            let mut log = vec![0u8; size];
            (self.log)(program, log.as_mut_ptr().cast());
            (self.destroy)(&mut program);
            log.pop_if(|last| *last == 0);
            Ok((status == 0, String::from_utf8_lossy(&log).into_owned()))
        }
    }
}

fn is_complaint(line: &str) -> bool {
    ["error", "warning", "fatal"].iter().any(|word| line.contains(word))
}

/// The kernels of a log that spill registers: `... N bytes spill stores, M bytes spill loads`.
fn spills(log: &str) -> Vec<String> {
    let mut kernel = "?";
    let mut found = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or("?");
        } else if let Some((before, _)) = line.split_once(" bytes spill stores") {
            let bytes = before.rsplit(' ').next().unwrap_or("?");
            if bytes != "0" {
                found.push(format!("{kernel} spills {bytes} bytes of registers"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUDA_PRELUDE: &str = include_str!("../../../crates/metalcore/src/device/gpu/prelude/cuda.h");
    const COMMON: &str = include_str!("../../../crates/metalcore/src/device/gpu/prelude/common.h");
    const VOCABULARY: &str = include_str!("../../../crates/metalcore-emulator/tests/emulator/kernels/vocabulary.metal");

    fn text(defines: &str, body: &str) -> String {
        format!(
            "{defines}#line 1 \"cuda.h\"\n{CUDA_PRELUDE}#line 1 \"common.h\"\n{COMMON}#line 1 \"body.metal\"\n{body}"
        )
    }

    #[test]
    fn the_vocabulary_compiles_without_a_finding() {
        let nvrtc = Nvrtc::load().unwrap();
        for defines in ["", "#define GK_F64 1\n", "#define GK_MIN_GROUPS 2\n"] {
            for architecture in crate::kernels::ARCHITECTURES {
                let findings = nvrtc.check(&text(defines, VOCABULARY), architecture).unwrap();
                assert_eq!(findings, [""; 0], "{defines}{architecture}");
            }
        }
    }

    #[test]
    fn errors_and_warnings_are_findings_with_their_line() {
        let nvrtc = Nvrtc::load().unwrap();
        let error = nvrtc.check(&text("", "G_FN float f() { return y; }\n"), "sm_90").unwrap();
        assert!(error[0].starts_with("body.metal(1): error"), "{error:?}");
        let warning = nvrtc.check(&text("", "G_FN float f() { float x; return x; }\n"), "sm_90").unwrap();
        assert!(warning[0].starts_with("body.metal(1): warning"), "{warning:?}");
    }

    #[test]
    fn spills_are_findings() {
        let body = "struct p_params { uint n; };\n\
            G_KERNEL(greedy, 1024, IN(0, float, x), OUT(1, float, y), PARAMS(2, p_params, p)) {\n\
            float r[100]; G_UNROLL for (uint i = 0; i < 100; ++i) r[i] = x[i * p.n];\n\
            for (uint k = 0; k < p.n; ++k) G_UNROLL for (uint i = 0; i < 100; ++i) r[i] = r[i] * r[99 - i] + x[k + i];\n\
            G_UNROLL for (uint i = 0; i < 100; ++i) y[i * p.n] = r[i];\n}\n";
        let nvrtc = Nvrtc::load().unwrap();
        let findings = nvrtc.check(&text("", body), "sm_90").unwrap();
        assert!(findings.len() == 1 && findings[0].starts_with("greedy spills "), "{findings:?}");
        let allowed = text("#define GK_ALLOW_SPILL \"a test\"\n", body);
        assert_eq!(nvrtc.check(&allowed, "sm_90").unwrap(), [""; 0]);
    }
}
