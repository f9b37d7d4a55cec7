//! Compiled libraries on disk. The cache is a convenience: whatever is wrong with it, the library is compiled anew.

use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::compiler::Compiler;
use crate::error::Error;

/// What a shared library is made from.
pub(crate) struct Recipe<'a> {
    /// Headers, by name.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// The C++ text.
    pub(crate) text: &'a str,
    /// Compiler flags.
    pub(crate) flags: &'a [&'a str],
}

impl Recipe<'_> {
    /// A name for the library that changes with anything that it depends on.
    pub(crate) fn key(&self, compiler: &Compiler) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        };
        add(env!("CARGO_PKG_VERSION"));
        add(std::env::consts::ARCH);
        add(&compiler.version);
        self.flags.iter().for_each(|flag| add(flag));
        for (name, text) in self.headers {
            add(name);
            add(text);
        }
        add(self.text);
        hex(&hash.finalize()[..16])
    }

    /// Loads the library from the cache, or compiles it and leaves it there.
    pub(crate) fn load(&self, compiler: &Compiler, key: &str, cache: &Path) -> Result<Library, Error> {
        let stored = Stored::new(cache, key);
        if let Some(library) = stored.load() {
            return Ok(library);
        }
        let (scratch, cache_is_writable) = scratch(cache)?;
        let library = scratch.path().join("library.so");
        for (name, text) in self.headers.iter().chain(&[("source.cpp", self.text)]) {
            fs::write(scratch.path().join(name), text).map_err(Error::io(format!("writing {name}")))?;
        }
        compiler.build(&scratch.path().join("source.cpp"), &library, self.flags)?;
        // Loaded where it is: the mapping outlives both the file's name and the file.
        let loaded = open(&library).map_err(Error::Load)?;
        if cache_is_writable {
            // A cache that cannot be filled costs time, not the result.
            stored.publish(&library).ok();
        }
        Ok(loaded)
    }
}

/// A library in the cache, beside the digest that tells a whole file from a damaged one.
struct Stored {
    library: PathBuf,
    digest: PathBuf,
}

impl Stored {
    fn new(cache: &Path, key: &str) -> Stored {
        Stored { library: cache.join(format!("{key}.so")), digest: cache.join(format!("{key}.sha256")) }
    }

    fn load(&self) -> Option<Library> {
        let expected = fs::read_to_string(&self.digest).ok()?;
        if digest_of(&self.library).ok()? != expected {
            return None;
        }
        open(&self.library).ok()
    }

    /// Moves a fresh library here. Renames are atomic, and a reader between the two sees a digest that does not match.
    fn publish(&self, fresh: &Path) -> std::io::Result<()> {
        let digest = fresh.with_extension("sha256");
        fs::write(&digest, digest_of(fresh)?)?;
        fs::rename(fresh, &self.library)?;
        fs::rename(digest, &self.digest)
    }
}

fn digest_of(file: &Path) -> std::io::Result<String> {
    Ok(hex(&Sha256::digest(fs::read(file)?)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A directory to compile in: beside the cached files, so that they can be renamed, or else anywhere.
fn scratch(cache: &Path) -> Result<(TempDir, bool), Error> {
    let beside = fs::create_dir_all(cache).and_then(|()| tempfile::Builder::new().prefix("build-").tempdir_in(cache));
    match beside {
        Ok(directory) => Ok((directory, true)),
        Err(_) => {
            tempfile::tempdir().map(|directory| (directory, false)).map_err(Error::io("making a temporary directory"))
        }
    }
}

fn open(file: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: The library is one of ours: its initialisers only link its kernels into a list.
    unsafe { Library::new(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Recipe<'_> =
        Recipe { headers: &[("one.h", "#define ONE 1\n")], text: "#include \"one.h\"\nint one = ONE;\n", flags: &[] };

    fn names(cache: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_library_and_its_digest_are_left_and_nothing_else() {
        let cache = tempfile::tempdir().unwrap();
        RECIPE.load(Compiler::get().unwrap(), "key", cache.path()).unwrap();
        assert_eq!(names(cache.path()), ["key.sha256", "key.so"]);
    }

    #[test]
    fn a_damaged_library_is_made_anew() {
        let cache = tempfile::tempdir().unwrap();
        let (compiler, stored) = (Compiler::get().unwrap(), Stored::new(cache.path(), "key"));
        RECIPE.load(compiler, "key", cache.path()).unwrap();
        let whole = fs::read(&stored.library).unwrap();
        fs::write(&stored.library, &whole[..whole.len() / 2]).unwrap();
        assert!(stored.load().is_none());
        RECIPE.load(compiler, "key", cache.path()).unwrap();
        assert!(stored.load().is_some());
    }

    #[test]
    fn the_key_changes_with_every_part() {
        let compiler = Compiler::get().unwrap();
        let key = RECIPE.key(compiler);
        let others = [
            Recipe { text: "int one = 1;\n", ..RECIPE },
            Recipe { headers: &[("one.h", "#define ONE 2\n")], ..RECIPE },
            Recipe { flags: &["-O1"], ..RECIPE },
        ];
        assert_eq!(RECIPE.key(compiler), key);
        assert!(others.iter().all(|other| other.key(compiler) != key));
    }
}
