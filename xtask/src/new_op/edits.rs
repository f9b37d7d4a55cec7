//! The edits outside an operation's own files.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Text that goes behind or before some other text of a file, which is there once.
struct Edit {
    file: &'static str,
    place: Place,
    text: &'static str,
}

enum Place {
    After(&'static str),
    Before(&'static str),
}
use Place::{After, Before};

const EDITS: [Edit; 11] = [
    Edit { file: "crates/metalcore/src/ops/mod.rs", place: After("pub mod qr;\n"), text: "pub mod op_name;\n" },
    Edit {
        file: "crates/metalcore/src/kernels.rs",
        place: Before("        ops::qr::units(),\n"),
        text: "        ops::op_name::units(),\n",
    },
    Edit {
        file: "crates/metalcore/benches/ops.rs",
        place: After("mod qr;\n"),
        text: "#[path = \"../src/ops/op_name/bench.rs\"]\nmod op_name;\n",
    },
    Edit { file: "crates/metalcore/benches/ops.rs", place: After("        adamw,\n"), text: "        op_name,\n" },
    Edit { file: "crates/metalcore-python/src/ops/mod.rs", place: After("pub mod qr;\n"), text: "pub mod op_name;\n" },
    Edit {
        file: "crates/metalcore-python/src/ops/mod.rs",
        place: Before("qr::OPERATORS"),
        text: "op_name::OPERATORS, ",
    },
    Edit {
        file: "python/metalcore/__init__.py",
        place: Before("from .qr import "),
        text: "from .op_name import op_name\n",
    },
    Edit { file: "python/metalcore/__init__.py", place: Before("    \"qr\",\n"), text: "    \"op_name\",\n" },
    Edit {
        file: "python/metalcore/bench/workloads/__init__.py",
        place: After("from . import (\n    activations,\n    adamw,\n"),
        text: "    op_name,\n",
    },
    Edit {
        file: "python/metalcore/bench/workloads/__init__.py",
        place: Before("    Selector(\"adamw\","),
        text: "    Selector(\"op_name\", \"op_name: forward\", op_name.cases, op_name.host_calls),\n",
    },
    Edit { file: "CHANGELOG.md", place: After("### Added\n\n"), text: "- `op_name`.\n" },
];

/// A file with its edits made.
pub struct Edited {
    file: &'static str,
    text: String,
    /// First line of an edit, and the lines as they are to be.
    lines: Vec<(usize, String)>,
}

/// Every edit for an operation, made in memory. An error where one has no place, or more than one.
pub fn all(root: &Path, name: &str) -> Result<Vec<Edited>> {
    let mut files: Vec<Edited> = Vec::new();
    for edit in &EDITS {
        if files.last().is_none_or(|last| last.file != edit.file) {
            let text =
                std::fs::read_to_string(root.join(edit.file)).with_context(|| format!("reading {}", edit.file))?;
            files.push(Edited { file: edit.file, text, lines: Vec::new() });
        }
        let file = files.last_mut().expect("one was put there");
        let (After(mark) | Before(mark)) = edit.place;
        let found = file.text.matches(mark).count();
        ensure!(found == 1, "{}: {mark:?} is there {found} times, expected once", edit.file);
        let at = file.text.find(mark).expect("it is there once");
        let at = if matches!(edit.place, After(_)) { at + mark.len() } else { at };
        let text = super::put_in(edit.text, name);
        file.text.insert_str(at, &text);
        file.lines.push(lines(&file.text, at, at + text.trim_end_matches('\n').len()));
    }
    Ok(files)
}

/// The lines that a range touches, and the number of the first.
fn lines(text: &str, from: usize, to: usize) -> (usize, String) {
    let start = text[..from].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[to..].find('\n').map_or(text.len(), |newline| to + newline);
    (text[..start].matches('\n').count() + 1, text[start..end].to_owned())
}

/// Writes them.
pub fn make(root: &Path, edited: &[Edited]) -> Result<()> {
    for file in edited {
        std::fs::write(root.join(file.file), &file.text).with_context(|| format!("writing {}", file.file))?;
        println!("edited {}", file.file);
    }
    Ok(())
}

/// Shows them: where, and the lines as they are to be.
pub fn print(edited: &[Edited]) {
    println!("\nEdits to make (or call with --edit); the lines as they are to be:");
    for file in edited {
        for (number, lines) in &file.lines {
            println!("\n{}:{number}", file.file);
            lines.lines().for_each(|line| println!("  {line}"));
        }
    }
}
