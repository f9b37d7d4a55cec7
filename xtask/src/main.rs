//! Chores of this repository: `cargo xtask <command>`.

mod kernels;
mod python;

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
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Kernels(arguments) => kernels::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
