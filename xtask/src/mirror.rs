//! `cargo xtask mirror`: whether the operations are the same everywhere, and whether Python's side of the extension
//! module (its stub, its documents) says what is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::python;

/// Operations by their folder; everything else is compared with these.
const OPS: &str = "crates/metalcore/src/ops";
const TESTS: &str = "tests/python";

/// What an operation's folder has, beside at least one kernel.
const PARTS: [&str; 6] = ["bench.rs", "cpu.rs", "gpu.rs", "mod.rs", "reference.rs", "tests.rs"];

/// Folders with one file for each operation: (folder, ending, other files there). What begins with an underscore is
/// no operation.
const MIRRORS: [(&str, &str, &[&str]); 2] = [
    ("crates/metalcore-python/src/ops", ".rs", &["mod"]),
    ("python/metalcore", ".py", &["comfy_patch", "config", "householder", "overrides", "transformers_patch"]),
];

/// Lists of operations in files: (file, what an operation's entry looks like).
const LISTS: [(&str, &str); 6] = [
    ("crates/metalcore/src/ops/mod.rs", "pub mod {};"),
    ("crates/metalcore/src/kernels.rs", "ops::{}::units()"),
    ("crates/metalcore/benches/ops.rs", "mod {};"),
    ("crates/metalcore-python/src/ops/mod.rs", "pub mod {};"),
    ("python/metalcore/__init__.py", "from .{} import "),
    ("python/metalcore/bench/workloads/__init__.py", "{}.cases, {}.host_calls"),
];

/// Files that tests and workloads have for an operation; others may stand beside them.
const BESIDE: [(&str, &str, &str); 2] = [(TESTS, "test_", ".py"), ("python/metalcore/bench/workloads", "", ".py")];

/// Prints what differs.
pub fn run() -> Result<ExitCode> {
    let root = crate::root();
    let mut findings = findings_in_files(&root)?;
    findings.extend(findings_in_python(&root)?);
    findings.iter().for_each(|finding| println!("{finding}"));
    let ops = operations(&root)?;
    match findings.len() {
        0 => println!("mirror: {} operations, the same everywhere", ops.len()),
        count => println!("mirror: {count} findings"),
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Names of the operations, by their folders.
fn operations(root: &Path) -> Result<BTreeSet<String>> {
    Ok(names(&root.join(OPS))?.into_iter().filter(|name| root.join(OPS).join(name).is_dir()).collect())
}

/// What the source files themselves show.
pub fn findings_in_files(root: &Path) -> Result<Vec<String>> {
    let ops = operations(root)?;
    let mut findings = Vec::new();
    for op in &ops {
        findings.extend(findings_in_folder(&root.join(OPS).join(op), &format!("{OPS}/{op}"))?);
    }
    for (folder, ending, others) in MIRRORS {
        let there: BTreeSet<String> = names(&root.join(folder))?
            .iter()
            .filter_map(|name| Some(name.strip_suffix(ending)?.to_owned()))
            .filter(|name| !name.starts_with('_') && !others.contains(&name.as_str()))
            .collect();
        findings.extend(ops.difference(&there).map(|op| format!("{folder}: no {op}{ending}")));
        findings.extend(there.difference(&ops).map(|op| format!("{folder}/{op}{ending}: no operation {op}")));
    }
    for (folder, before, after) in BESIDE {
        let there = names(&root.join(folder))?;
        let missing = ops.iter().map(|op| format!("{before}{op}{after}")).filter(|name| !there.contains(name));
        findings.extend(missing.map(|name| format!("{folder}: no {name}")));
    }
    for (file, entry) in LISTS {
        let text = read(&root.join(file))?;
        let missing = ops.iter().map(|op| entry.replace("{}", op)).filter(|entry| !text.contains(entry.as_str()));
        findings.extend(missing.map(|entry| format!("{file}: no `{entry}`")));
    }
    Ok(findings)
}

/// What an operation's folder lacks, and kernels that nothing includes.
fn findings_in_folder(folder: &Path, shown: &str) -> Result<Vec<String>> {
    let there = names(folder)?;
    let mut findings: Vec<String> =
        PARTS.into_iter().filter(|part| !there.contains(*part)).map(|part| format!("{shown}: no {part}")).collect();
    let kernels: Vec<&String> = there.iter().filter(|name| name.ends_with(".metal")).collect();
    if kernels.is_empty() {
        findings.push(format!("{shown}: no kernel"));
    }
    let sources: Vec<String> = there
        .iter()
        .filter(|name| name.ends_with(".rs"))
        .map(|name| read(&folder.join(name)))
        .collect::<Result<_>>()?;
    for kernel in kernels {
        let include = format!("\"{kernel}\""); // in include_str!, or in a macro of the folder around it
        if !sources.iter().any(|source| source.contains(&include)) {
            findings.push(format!("{shown}/{kernel}: nothing includes it"));
        }
    }
    Ok(findings)
}

/// What the installed package shows: documents of public names, and the stub against the extension module.
fn findings_in_python(root: &Path) -> Result<Vec<String>> {
    let output = Command::new(python::interpreter())
        .args(["-c", include_str!("mirror.py")])
        .arg(root.join("python/metalcore/_native.pyi"))
        .current_dir(root)
        .output()
        .context("running Python (METALCORE_PYTHON names another)")?;
    if !output.status.success() {
        bail!("Python: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// Copies the folders that [`findings_in_files`] reads.
#[cfg(test)]
pub fn copy_what_is_looked_at(from: &Path, to: &Path) -> Result<()> {
    for folder in ["crates/metalcore/src", "crates/metalcore/benches", "crates/metalcore-python/src", "python", TESTS] {
        copy(&from.join(folder), &to.join(folder))?;
    }
    std::fs::copy(from.join("CHANGELOG.md"), to.join("CHANGELOG.md"))?;
    Ok(())
}

#[cfg(test)]
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for name in names(from)? {
        let (source, target) = (from.join(&name), to.join(&name));
        if source.is_dir() {
            copy(&source, &target)?;
        } else if !name.ends_with(".so") {
            std::fs::copy(source, target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let scratch = tempfile::tempdir().expect("a folder for temporary files");
        let root = scratch.path();
        copy_what_is_looked_at(&crate::root(), root).expect("the tree can be copied");
        std::fs::remove_file(root.join("tests/python/test_qr.py")).expect("it is there");
        std::fs::remove_file(root.join("crates/metalcore/src/ops/adamw/reference.rs")).expect("it is there");
        std::fs::write(root.join("python/metalcore/unknown.py"), "").expect("writable");
        std::fs::write(root.join("crates/metalcore/src/ops/qr/old.metal"), "").expect("writable");
        let findings = findings_in_files(root).expect("readable");
        let expected = [
            "crates/metalcore/src/ops/adamw: no reference.rs",
            "crates/metalcore/src/ops/qr/old.metal: nothing includes it",
            "python/metalcore/unknown.py: no operation unknown",
            "tests/python: no test_qr.py",
        ];
        assert_eq!(findings, expected);
    }
}
