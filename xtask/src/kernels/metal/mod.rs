//! A static check of Metal text, without Apple's compiler: clang reads it as C++ for OpenCL 2021, which has Metal's
//! address spaces, with a stand-in for `<metal_stdlib>`; then rules that OpenCL does not have are applied to the
//! syntax tree.

mod clang;
#[cfg(test)]
mod mistakes;
mod rules;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use clang::Clang;
use rules::Rules;
use tree::{Lines, Node};

const METAL_STDLIB: &str = include_str!("../metal_stdlib.h");

/// What a passed check depends on besides the text and clang.
const OWN_TEXT: [&str; 5] =
    [METAL_STDLIB, include_str!("mod.rs"), include_str!("clang.rs"), include_str!("rules.rs"), include_str!("tree.rs")];

pub struct MetalCheck {
    clang: Clang,
    version: String,
    /// Holds the stand-in header, and the texts while they are read.
    folder: TempDir,
}

impl MetalCheck {
    pub fn new() -> Result<MetalCheck> {
        let clang = Clang::find()?;
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        fs::write(folder.path().join("metal_stdlib"), METAL_STDLIB).context("writing the stand-in header")?;
        let version = format!("{}\n{}", clang.version(), OWN_TEXT.concat());
        Ok(MetalCheck { clang, version, folder })
    }

    /// Everything but the text that a result depends on.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What is wrong with a text, as `file:line: message`. `kernel` is the kernel that a host launches and its
    /// threads. Call this on a large stack.
    pub fn check(&self, text: &str, kernel: Option<(&str, u32)>) -> Result<Vec<String>> {
        if let Some(at) = text.find(|c: char| !c.is_ascii()) {
            let line = text[..at].matches('\n').count() + 1;
            return Ok(vec![format!("{}: a character that is not ASCII", Lines::of(text).name(line))]);
        }
        let file = self.write(text)?;
        let output = self.clang.read(&file, self.folder.path())?;
        fs::remove_file(&file).context("removing a text that was read")?;
        let mut findings = complaints(&output.messages, &file);
        match Node::parse(&output.tree) {
            Ok(tree) => findings.extend(Rules::apply(&tree, &file, &Lines::of(text), kernel)),
            // Without a tree clang has always said why.
            Err(_) if !findings.is_empty() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("reading clang's syntax tree: {}", output.messages));
            }
        }
        Ok(findings)
    }

    fn write(&self, text: &str) -> Result<PathBuf> {
        let file = tempfile::Builder::new().suffix(".metal").tempfile_in(self.folder.path());
        let (_, path) = file.context("making a file for clang")?.keep()?;
        fs::write(&path, text).context("writing a text for clang")?;
        Ok(path)
    }
}

/// clang's errors and warnings, less those that Metal does not have.
fn complaints(messages: &str, file: &Path) -> Vec<String> {
    let is_complaint = |line: &str| line.contains(": error: ") || line.contains(": warning: ");
    let lines: Vec<&str> = messages.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_complaint(line)) {
        let notes = lines[at + 1..].iter().take_while(|line| !is_complaint(line));
        // A struct may be copied out of constant memory in Metal; OpenCL has no such constructor.
        let constant_copy =
            |note: &&&str| note.contains("(the implicit copy ") && note.contains("address space '__constant'");
        if notes.clone().find(constant_copy).is_none() {
            found.push(line.replace(&*file.to_string_lossy(), "text"));
        }
    }
    if found.is_empty() && messages.lines().any(|line| line.starts_with("error:")) {
        found.push(messages.to_owned()); // of clang itself, about its flags
    }
    found
}
