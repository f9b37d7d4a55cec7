//! Libraries: what can be wrong with a text or its name, and a cache directory that cannot be used.

use std::path::Path;

use crate::support::{Memory, run};
use metalcore_emulator::{Library, Options};

/// A kernel that writes `value`. Within a process a text is loaded once, so each test has its own.
fn text(value: u32) -> String {
    format!(
        "#line 1 \"value.metal\"\nstruct value_params {{ uint n; }};\n\
         G_KERNEL(value, 32, OUT(0, uint, y), PARAMS(1, value_params, p)) {{ y[G_CTX().tid] = {value}u; }}\n"
    )
}

fn assert_runs(library: &Library, value: u32) {
    let mut y = Memory::new::<u32>(32);
    run(library, "value", 1, &mut [&mut y], &[1], &Options::default()).unwrap();
    assert_eq!(y.to::<u32>(), [value; 32]);
}

fn cache() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

#[test]
fn a_cache_that_cannot_be_made_is_done_without() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_runs(&Library::compile(&text(1), &file.path().join("below")).unwrap(), 1);
}

#[test]
fn threads_may_compile_and_launch_at_once() {
    std::thread::scope(|scope| {
        for i in 0..8 {
            scope.spawn(move || assert_runs(&Library::compile(&text(10 + i % 2), cache()).unwrap(), 10 + i % 2));
        }
    });
}

#[test]
fn a_text_that_does_not_compile_is_an_error_with_its_line() {
    let error = Library::compile("#line 7 \"wrong.metal\"\nint x = y;\n", cache()).unwrap_err();
    assert!(error.to_string().contains("wrong.metal:7"), "{error}");
}

#[test]
fn an_unknown_kernel_is_an_error_with_the_known_names() {
    let library = Library::compile(&text(2), cache()).unwrap();
    let error = run(&library, "values", 1, &mut [], &[1], &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "no kernel values in the library, which has: value");
}
