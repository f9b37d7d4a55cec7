//! Chores of this repository: `cargo xtask <command>`.

mod kernels;
mod mirror;
mod new_op;
mod python;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this repository")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile every kernel for every NVIDIA GPU generation, and check its text against Metal's rules.
    Kernels(kernels::Arguments),
    /// Check that the operations are the same everywhere, and that stub and docstrings are complete.
    Mirror,
    /// Make the files of a new operation.
    NewOp(new_op::Arguments),
}

/// The repository.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("xtask is a folder of the repository").to_owned()
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Kernels(arguments) => kernels::run(&arguments),
        Command::Mirror => mirror::run(),
        Command::NewOp(arguments) => new_op::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
