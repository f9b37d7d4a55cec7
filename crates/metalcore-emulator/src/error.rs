//! What can go wrong.

use std::io;

/// An error of the emulator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No C++ compiler was found.
    #[error(
        "no C++ compiler for the emulator (tried {tried}): install g++ or clang++, name one in METALCORE_CXX, \
         or `pip install ziglang` into the Python named by METALCORE_PYTHON"
    )]
    NoCompiler {
        /// What was tried.
        tried: String,
    },
    /// The kernel's text does not compile.
    #[error("the kernel does not compile:\n{log}")]
    Compile {
        /// What the compiler said.
        log: String,
    },
    /// A library could not be loaded.
    #[error("cannot load the compiled kernel")]
    Load(#[from] libloading::Error),
    /// A file operation failed.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The library has no kernel of this name.
    #[error("no kernel {name} in the library, which has: {known}")]
    NoSuchKernel {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The launch was refused, or the kernel did something wrong.
    #[error("{0}")]
    Launch(String),
}

impl Error {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::Io { action, source }
    }
}
