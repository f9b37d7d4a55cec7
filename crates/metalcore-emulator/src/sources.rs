//! The C++ sources, and the text of a kernel library.

/// Headers that a kernel library includes.
pub(crate) const KERNEL_HEADERS: [(&str, &str); 4] = [
    ("abi.h", include_str!("cpp/abi.h")),
    ("memory.h", include_str!("cpp/memory.h")),
    ("prelude.h", include_str!("cpp/prelude.h")),
    ("storage.h", include_str!("cpp/storage.h")),
];

/// Headers of the runtime.
pub(crate) const RUNTIME_HEADERS: [(&str, &str); 3] = [
    ("abi.h", include_str!("cpp/abi.h")),
    ("fiber.h", include_str!("cpp/fiber.h")),
    ("shadow.h", include_str!("cpp/shadow.h")),
];

/// The runtime.
pub(crate) const RUNTIME: &str = include_str!("cpp/runtime.cpp");

/// Puts the prelude behind the `#define` lines that the text begins with: it depends on them.
pub(crate) fn kernel_text(source: &str) -> String {
    let defines: usize =
        source.split_inclusive('\n').take_while(|line| line.starts_with("#define ")).map(str::len).sum();
    let (defines, rest) = source.split_at(defines);
    format!("{defines}#include \"prelude.h\"\n{rest}")
}

#[cfg(test)]
mod tests {
    use super::kernel_text;

    #[test]
    fn the_prelude_follows_the_defines() {
        let text = kernel_text("#define GK_F64 1\n#define N 4\n#line 1 \"k.metal\"\n#define M 1\n");
        assert_eq!(text, "#define GK_F64 1\n#define N 4\n#include \"prelude.h\"\n#line 1 \"k.metal\"\n#define M 1\n");
    }

    #[test]
    fn a_text_without_defines_starts_with_the_prelude() {
        assert_eq!(kernel_text("int x;"), "#include \"prelude.h\"\nint x;");
    }
}
