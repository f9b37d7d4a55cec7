//! `cargo xtask new-op NAME`: the files of a new operation, and the edits that make it known.
//!
//! The files are those of `template/` with the name put in: an operation of one tensor, complete on every device and in
//! Python but for its formula, so that everything compiles and its tests fail.

mod edits;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

#[derive(clap::Args)]
pub struct Arguments {
    /// PyTorch's own word in lower case, such as layer_norm.
    name: String,
    /// Make the edits too instead of printing them.
    #[arg(long)]
    edit: bool,
    /// Another checkout to work on.
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
}

/// Words that are no name of a module in Rust or Python, or that something else has.
const TAKEN: [&str; 14] = [
    "bench", "class", "config", "crate", "def", "demo", "fn", "impl", "lambda", "loop", "mod", "return", "self", "type",
];

/// (file of the template, where it goes).
const FILES: [(&str, &str); 11] = [
    (include_str!("template/operation.rs"), "crates/metalcore/src/ops/op_name/mod.rs"),
    (include_str!("template/reference.rs"), "crates/metalcore/src/ops/op_name/reference.rs"),
    (include_str!("template/cpu.rs"), "crates/metalcore/src/ops/op_name/cpu.rs"),
    (include_str!("template/gpu.rs"), "crates/metalcore/src/ops/op_name/gpu.rs"),
    (include_str!("template/kernel.metal"), "crates/metalcore/src/ops/op_name/kernel.metal"),
    (include_str!("template/tests.rs"), "crates/metalcore/src/ops/op_name/tests.rs"),
    (include_str!("template/bench.rs"), "crates/metalcore/src/ops/op_name/bench.rs"),
    (include_str!("template/binding.rs"), "crates/metalcore-python/src/ops/op_name.rs"),
    (include_str!("template/module.py"), "python/metalcore/op_name.py"),
    (include_str!("template/workload.py"), "python/metalcore/bench/workloads/op_name.py"),
    (include_str!("template/test.py"), "tests/python/test_op_name.py"),
];

/// Writes the files of an operation, and prints or makes the edits.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = arguments.root.clone().unwrap_or_else(crate::root);
    create(&root, &arguments.name, arguments.edit)?;
    Ok(ExitCode::SUCCESS)
}

/// The same below a folder. Nothing is written where a file is there already or an edit has no place.
fn create(root: &Path, name: &str, edit: bool) -> Result<()> {
    check(name)?;
    let files = FILES.map(|(text, path)| (put_in(text, name), root.join(put_in(path, name))));
    for (_, path) in &files {
        ensure!(!path.exists(), "{} is there already", path.display());
    }
    let edited = edits::all(root, name)?;
    for (text, path) in &files {
        let folder = path.parent().expect("a file is in a folder");
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("wrote {}", path.strip_prefix(root).unwrap_or(path).display());
    }
    if edit {
        edits::make(root, &edited)?;
    } else {
        edits::print(&edited);
    }
    println!("\nThen `make format`. The tests of {name} fail until its formula is written: see CONTRIBUTING.md.");
    Ok(())
}

fn check(name: &str) -> Result<()> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(letters) {
        bail!("{name}: an operation is named by lower-case letters, digits and underscores");
    }
    ensure!(!TAKEN.contains(&name), "{name}: the word is taken");
    Ok(())
}

/// The text of a template for an operation. The template's own name, in its three spellings, is `op_name`.
fn put_in(text: &str, name: &str) -> String {
    let capitalised = |word: &str| word[..1].to_uppercase() + &word[1..];
    let camel: String = name.split('_').filter(|word| !word.is_empty()).map(capitalised).collect();
    text.replace("op_name", name).replace("OpName", &camel).replace("OP_NAME", &name.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edit_has_its_place_in_the_tree() {
        edits::all(&crate::root(), "op_name").expect("an edit of new_op/edits.rs names a line that is not there");
    }

    #[test]
    fn the_three_spellings_are_put_in() {
        assert_eq!(put_in("op_name OpName OP_NAME_T", "layer_norm"), "layer_norm LayerNorm LAYER_NORM_T");
    }

    #[test]
    fn wrong_names_are_refused() {
        for name in ["", "Softmax", "_x", "soft-max", "2d", "config", "café"] {
            assert!(check(name).is_err(), "{name}");
        }
        check("conv2d").expect("a name");
    }

    #[test]
    fn a_scaffolded_tree_agrees_with_itself() {
        let scratch = tempfile::tempdir().expect("a folder for temporary files");
        crate::mirror::copy_what_is_looked_at(&crate::root(), scratch.path()).expect("the tree can be copied");
        create(scratch.path(), "op_name", true).expect("a new operation");
        let findings = crate::mirror::findings_in_files(scratch.path()).expect("readable");
        assert!(findings.is_empty(), "{findings:#?}");
        let again = create(scratch.path(), "op_name", true);
        assert!(again.is_err(), "an operation is not written over");
    }
}
