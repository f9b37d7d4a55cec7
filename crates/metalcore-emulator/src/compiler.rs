//! The machine's C++ compiler.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::error::Error;

/// Flags of every compilation.
const COMMON_FLAGS: [&str; 6] = ["-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-exceptions", "-w"];

/// Flags of the runtime, compiled once per machine. The running worker is a thread-local that every access reads:
/// with the initial-exec model that is one instruction.
pub(crate) const RUNTIME_FLAGS: [&str; 3] = ["-O2", "-ftls-model=initial-exec", "-pthread"];

/// Flags of a kernel. Measured with g++ 12 on batched QR, SVD and RMSNorm: -O1 compiles in 0.65 of the time of -O2
/// and runs as fast, since the time goes into checks and switches. No contraction: hosts must agree.
pub(crate) const KERNEL_FLAGS: [&str; 5] =
    ["-O1", "-fno-rtti", "-fno-math-errno", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern"];

/// A C++ compiler that answered to `--version`.
#[derive(Debug)]
pub(crate) struct Compiler {
    command: Vec<OsString>,
    extra_flags: &'static [&'static str],
    /// What it says about itself.
    pub(crate) version: String,
}

impl Compiler {
    /// The compiler of this process, looked for once.
    pub(crate) fn get() -> Result<&'static Compiler, Error> {
        static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
        COMPILER.get_or_init(find).as_ref().map_err(|tried| Error::NoCompiler { tried: tried.clone() })
    }

    /// Compiles one C++ file to a shared library.
    pub(crate) fn build(&self, source: &Path, output: &Path, flags: &[&str]) -> Result<(), Error> {
        let result = self
            .command()
            .args(COMMON_FLAGS)
            .args(self.extra_flags)
            .args(flags.iter().filter(|flag| self.accepts(flag)))
            .arg(source)
            .arg("-o")
            .arg(output)
            .arg("-lm")
            .output()
            .map_err(Error::io("running the C++ compiler"))?;
        if result.status.success() {
            return Ok(());
        }
        Err(Error::Compile { log: String::from_utf8_lossy(&result.stderr).into_owned() })
    }

    /// Whether the compiler knows a flag. Only the fill of uninitialised variables is newer than C++17.
    fn accepts(&self, flag: &str) -> bool {
        const FILL: &str = "-ftrivial-auto-var-init=pattern";
        static FILL_WORKS: OnceLock<bool> = OnceLock::new();
        flag != FILL
            || *FILL_WORKS.get_or_init(|| {
                self.command()
                    .args([FILL, "-fsyntax-only", "-x", "c++", "/dev/null"])
                    .output()
                    .is_ok_and(|result| result.status.success())
            })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        command
    }
}

/// The first compiler that works, or the names of those tried. One that the environment names is the only one tried.
fn find() -> Result<Compiler, String> {
    let candidates = match ["METALCORE_CXX", "CXX"].iter().find_map(std::env::var_os).filter(|value| !value.is_empty())
    {
        Some(named) => vec![words(&named)],
        None => {
            let python = std::env::var_os("METALCORE_PYTHON").unwrap_or_else(|| "python3".into());
            let zig = vec![python, "-m".into(), "ziglang".into(), "c++".into()];
            vec![vec!["c++".into()], vec!["g++".into()], vec!["clang++".into()], zig]
        }
    };
    let mut tried = Vec::new();
    for command in candidates {
        let name = command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let answer = Command::new(&command[0]).args(&command[1..]).arg("--version").output();
        match answer {
            Ok(answer) if answer.status.success() => {
                let version = String::from_utf8_lossy(&answer.stdout).into_owned();
                // zig checks for undefined behaviour unless told not to.
                let extra_flags: &[&str] = if name.contains("zig") { &["-fno-sanitize=undefined"] } else { &[] };
                return Ok(Compiler { command, extra_flags, version });
            }
            _ => tried.push(name),
        }
    }
    Err(tried.join(", "))
}

/// A command from the environment: a path, or words such as `ccache g++`.
fn words(value: &OsString) -> Vec<OsString> {
    if Path::new(value).exists() {
        return vec![value.clone()];
    }
    value.to_string_lossy().split_whitespace().map(OsString::from).collect()
}
