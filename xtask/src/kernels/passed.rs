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
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target"), PathBuf::from);
        let folder = target.join("kernel-checks");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Passed { folder })
    }

    /// The findings of a check, which is not run where the same passed before.
    pub fn unless(&self, what: &[&str], check: impl FnOnce() -> Result<Vec<String>>) -> Result<Vec<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passed_is_not_checked_again() {
        let folder = tempfile::tempdir().unwrap();
        let passed = Passed { folder: folder.path().to_owned() };
        let mut checks = 0;
        let mut check = |what: &[&str], findings: &[&str]| {
            let findings = findings.iter().map(|finding| finding.to_string()).collect();
            let found = passed.unless(what, || {
                checks += 1;
                Ok(findings)
            });
            found.unwrap().len()
        };
        assert_eq!(check(&["a", "b"], &["wrong"]), 1);
        assert_eq!(check(&["a", "b"], &[]), 0);
        assert_eq!(check(&["a", "b"], &["not looked for"]), 0);
        assert_eq!(check(&["ab", ""], &["wrong"]), 1);
        assert_eq!(checks, 3);
    }
}
