//! Checks that passed before: an empty file each, named by what was checked and by what.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

pub struct Passed {
    folder: PathBuf,
}

impl Passed {
    /// The record under the build folder.
    pub fn open() -> Result<Passed> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target"),
            PathBuf::from,
        );
        let folder = target.join("kernel-checks");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Passed { folder })
    }

    /// The findings of a check, which is not run where the same passed before.
    pub fn unless(
        &self,
        what: &[&str],
        check: impl FnOnce() -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        let mut hash = Sha256::new();
        for part in what {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let file = self.folder.join(format!("{:x}", hash.finalize()));
        if file.exists() {
            return Ok(Vec::new());
        }
        let findings = check()?;
        if findings.is_empty() {
            fs::write(&file, "").with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(findings)
    }
}
