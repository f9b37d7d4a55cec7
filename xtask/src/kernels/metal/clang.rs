//! The clang that stands in for Apple's compiler.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::python;

/// The first version with C++ for OpenCL 2021 as it is used here.
const OLDEST: u32 = 16;

/// C++ for OpenCL 2021 has Metal's address spaces. Extensions that Metal lacks are off; the generic address space
/// is on, so that a pointer without a qualifier compiles and is found in the syntax tree.
const FLAGS: [&str; 19] = [
    "-cc1",
    "-triple",
    "spir64",
    "-x",
    "cl",
    "-cl-std=clc++2021",
    "-cl-ext=-__opencl_c_program_scope_global_variables,-cl_khr_fp64,-__opencl_c_fp64,-__opencl_c_pipes,\
     -__opencl_c_device_enqueue,-__opencl_c_read_write_images",
    "-D__METAL_VERSION__=310",
    "-Wno-unknown-attributes",
    "-Wno-c++17-attribute-extensions",
    "-Wpre-c++17-compat",
    "-Wdouble-promotion",
    "-Werror=implicit-function-declaration",
    "-fno-caret-diagnostics",
    "-ferror-limit",
    "200",
    "-fsyntax-only",
    "-ast-dump=json",
    "-I",
];

pub struct Clang {
    command: Vec<OsString>,
    version: String,
}

/// What clang says about a text.
pub struct Output {
    /// Errors, warnings and notes, a line each.
    pub messages: String,
    /// The syntax tree as JSON.
    pub tree: Vec<u8>,
}

impl Clang {
    /// The clang of `METALCORE_CLANG`, of the system, or of the Python package ziglang.
    pub fn find() -> Result<Clang> {
        if let Some(named) = std::env::var_os("METALCORE_CLANG") {
            return Clang::try_command(vec![named]).context("METALCORE_CLANG is not a clang 16 or later");
        }
        let versioned = (OLDEST..=22).rev().map(|version| vec![format!("clang-{version}").into()]);
        let plain = vec!["clang".into()];
        let zig = vec![python::interpreter(), "-m".into(), "ziglang".into(), "clang".into()];
        match versioned.chain([plain, zig]).find_map(Clang::try_command) {
            Some(clang) => Ok(clang),
            None => bail!(
                "clang {OLDEST} or later was not found: install it, name it in METALCORE_CLANG, or \
                 `pip install ziglang` into the Python named by METALCORE_PYTHON"
            ),
        }
    }

    fn try_command(command: Vec<OsString>) -> Option<Clang> {
        let answer = Command::new(&command[0]).args(&command[1..]).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&answer.stdout);
        let version = text.lines().next()?.to_owned();
        let number = version.split_once("version ")?.1.split('.').next()?.parse::<u32>().ok()?;
        (answer.status.success() && number >= OLDEST).then_some(Clang { command, version })
    }

    /// The first line of its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Reads a file; `headers` has the stand-in for `<metal_stdlib>`.
    pub fn read(&self, file: &Path, headers: &Path) -> Result<Output> {
        let output = Command::new(&self.command[0])
            .args(&self.command[1..])
            .args(FLAGS)
            .arg(headers)
            .arg(file)
            .output()
            .context("running clang")?;
        Ok(Output { messages: String::from_utf8_lossy(&output.stderr).into_owned(), tree: output.stdout })
    }
}
