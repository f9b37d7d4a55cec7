//! The Python whose packages bring tools that the system may lack.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// The interpreter: `METALCORE_PYTHON`, or `python3`.
pub fn interpreter() -> OsString {
    std::env::var_os("METALCORE_PYTHON").unwrap_or_else(|| "python3".into())
}

/// The folders where it looks for packages; none where there is no Python.
pub fn package_folders() -> Vec<PathBuf> {
    let answer = Command::new(interpreter()).args(["-c", "import sys; print('\\n'.join(sys.path))"]).output();
    let Ok(answer) = answer else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&answer.stdout);
    text.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()
}
