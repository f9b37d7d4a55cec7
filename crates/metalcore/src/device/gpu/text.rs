//! Kernel text. A specialisation is `#define` lines, the target's prelude, the shared prelude and the body.

use smallvec::SmallVec;
use std::fmt::Write;

/// The languages that one text is compiled as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Metal Shading Language, through Apple's run-time compiler.
    Metal,
    /// CUDA C++, through NVRTC.
    Cuda,
    /// C++17 for the emulator, which adds its own prelude.
    Emulator,
}

const METAL: &str = include_str!("prelude/metal.h");
const CUDA: &str = include_str!("prelude/cuda.h");
const COMMON: &str = include_str!("prelude/common.h");

/// A kernel file with the C declarations of its parameter blocks.
#[derive(Debug)]
pub struct Source {
    /// Name of the file, for messages.
    pub file: &'static str,
    /// Its text.
    pub body: &'static str,
    /// Parameter blocks (`params!`).
    pub declarations: &'static [&'static str],
}

/// A `#define NAME value` that specialises the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Define {
    /// A number.
    Number(&'static str, u32),
    /// A type or another word.
    Word(&'static str, &'static str),
}

/// A kernel, specialised.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where its text is.
    pub source: &'static Source,
    /// Name of the kernel function.
    pub entry: &'static str,
    /// Threads in a group: a multiple of 32, at most 1024.
    pub threads: u32,
    /// What makes this specialisation.
    pub defines: Defines,
}

/// Kept in place: a launch makes a [`Spec`] to look its kernel up, and allocates nothing.
pub type Defines = SmallVec<[Define; 16]>;

impl PartialEq for Spec {
    fn eq(&self, other: &Spec) -> bool {
        std::ptr::eq(self.source, other.source) && self.entry == other.entry && self.defines == other.defines
    }
}
impl Eq for Spec {}
impl std::hash::Hash for Spec {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::ptr::hash(self.source, state);
        self.entry.hash(state);
        self.defines.hash(state);
    }
}

impl Spec {
    /// Whether the kernel computes in float64, which Metal does not have.
    pub fn float64(&self) -> bool {
        self.defines.contains(&Define::Number("GK_F64", 1))
    }

    /// A name for files and messages: the entry and the values that specialise it.
    pub fn name(&self) -> String {
        let mut name = self.entry.to_owned();
        for define in &self.defines {
            match define {
                Define::Number("GK_F64", 0) => {}
                Define::Number("GK_F64", _) => name.push_str("_f64"),
                Define::Number(_, value) => write!(name, "_{value}").expect("writing to a string"),
                Define::Word(_, word) => write!(name, "_{word}").expect("writing to a string"),
            }
        }
        name
    }

    /// The `#define` lines.
    pub fn define_lines(&self) -> String {
        let mut text = String::new();
        for define in &self.defines {
            match define {
                Define::Number(name, value) => writeln!(text, "#define {name} {value}"),
                Define::Word(name, word) => writeln!(text, "#define {name} {word}"),
            }
            .expect("writing to a string");
        }
        text
    }

    /// The complete text for a target. For the emulator: everything but its prelude, which the emulator adds.
    pub fn text(&self, target: Target) -> String {
        let mut text = self.define_lines();
        match target {
            Target::Metal => push(&mut text, "metal.h", METAL),
            Target::Cuda => push(&mut text, "cuda.h", CUDA),
            Target::Emulator => {}
        }
        text + &self.after_prelude()
    }

    fn after_prelude(&self) -> String {
        let mut text = String::new();
        push(&mut text, "common.h", COMMON);
        for declaration in self.source.declarations {
            text.push_str(declaration);
        }
        push(&mut text, self.source.file, self.source.body);
        text
    }
}

fn push(text: &mut String, file: &str, body: &str) {
    writeln!(text, "#line 1 \"{file}\"").expect("writing to a string");
    text.push_str(body);
    if !body.ends_with('\n') {
        text.push('\n');
    }
}

/// Turns the text that Apple's compiler would get into the emulator's: the Metal prelude, which must be there
/// to the letter, is taken out, and nothing else changes.
pub fn metal_to_emulator(text: &str) -> Option<String> {
    let mut prelude = String::new();
    push(&mut prelude, "metal.h", METAL);
    let at = text.find(&prelude)?;
    Some(format!("{}{}", &text[..at], &text[at + prelude.len()..]))
}
