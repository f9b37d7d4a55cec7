//! `cargo xtask kernels`: what a kernel text has to pass before it meets a GPU.
//!
//! Each specialisation is compiled by NVRTC for every architecture that ships, and its Metal text is checked
//! with clang against Metal's rules and limits. What passed is remembered under `target/`.

mod metal;
mod nvrtc;
mod passed;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use metalcore::kernels::Unit;

use metal::MetalCheck;
use nvrtc::Nvrtc;
use passed::Passed;

/// Architectures that are compiled for.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

/// The syntax tree of a kernel is deep, and walked recursively.
const STACK_BYTES: usize = 256 << 20;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only kernels whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Checks that run at the same time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Checks every kernel.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let mut units = metalcore::kernels::all();
    units.retain(|unit| unit.name().contains(&arguments.only));
    let checks = Checks { nvrtc: Nvrtc::load()?, metal: MetalCheck::new()?, passed: Passed::open()? };

    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            let findings = checks.check(unit).with_context(|| unit.name())?;
            if !findings.is_empty() {
                println!("{} ({}): {}", unit.name(), unit.file(), findings.join("; "));
                failed.lock().expect("no holder panics").extend(findings);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let spawn = || std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let workers = (0..arguments.threads.max(1)).map(|_| spawn()).collect::<Result<Vec<_>, _>>()?;
        workers.into_iter().try_for_each(|worker| worker.join().expect("a check does not panic"))
    })?;

    let failed = failed.into_inner().expect("no holder panics");
    let verdict = |job: &str| match failed.iter().filter(|finding| finding.starts_with(job)).count() {
        0 => "ok".to_owned(),
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    };
    println!(
        "{} units: NVRTC sm_80 {}, sm_90 {}, Metal check {}, {:.1} s",
        units.len(),
        verdict("sm_80"),
        verdict("sm_90"),
        verdict("Metal"),
        start.elapsed().as_secs_f64()
    );
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Checks {
    nvrtc: Nvrtc,
    metal: MetalCheck,
    passed: Passed,
}

impl Checks {
    /// What is wrong with a kernel: each finding begins with the job that made it.
    fn check(&self, unit: &Unit) -> Result<Vec<String>> {
        let mut findings = Vec::new();
        let cuda = unit.cuda_text();
        for architecture in ARCHITECTURES {
            let found = self
                .passed
                .unless(&[architecture, self.nvrtc.version(), &cuda], || self.nvrtc.check(&cuda, architecture))?;
            findings.extend(found.into_iter().map(|finding| format!("{architecture}: {finding}")));
        }
        if unit.metal() {
            let text = unit.metal_text();
            let threads = unit.threads().to_string();
            let found = self.passed.unless(&["metal", self.metal.version(), &threads, &text], || {
                self.metal.check(&text, Some((unit.entry(), unit.threads())))
            })?;
            findings.extend(found.into_iter().map(|finding| format!("Metal: {finding}")));
        }
        Ok(findings)
    }
}
