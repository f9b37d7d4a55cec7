//! Factors a batch of matrices, A = Q R, from a file: `cargo run --release --example factor [FILE]`.
//!
//! The file is text: three sizes (matrices, rows, columns), then the float32 entries, row by row and matrix after matrix,
//! all separated by white space. `#` starts a comment that ends with its line. Without FILE a small batch is written to
//! a temporary file and read from there. The GPU is used where there is one. Printed are the shape, the times, and how
//! far the factors are from exact ones, in units of the size and the roundoff (see `metalcore::ops::qr::reference`).

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use metalcore::Tensor;
use metalcore::device::{Run, cpu::Cpu};
use metalcore::ops::qr::{Mode, Qr, qr, reference};

/// Calls that are timed after the first one, which may compile a kernel.
const CALLS: usize = 20;

/// Matrices of one size, one after the other, row by row.
struct Batch {
    shape: [usize; 3],
    values: Vec<f32>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let path = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => write_small_batch()?,
    };
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let batch = parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    #[cfg(feature = "cuda")]
    if metalcore::device::cuda::available() {
        return factor(&metalcore::device::cuda::Cuda::new(0)?, &batch);
    }
    factor(&Cpu::new(), &batch)
}

/// 500 matrices of 16 x 16 whose entries are those of a linear congruential generator.
fn write_small_batch() -> Result<PathBuf, Box<dyn Error>> {
    let mut text = String::from("500 16 16 # matrices, rows, columns\n");
    let mut state = 1u64;
    for _ in 0..500 * 16 {
        for _ in 0..16 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            write!(text, "{:.7} ", (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)?;
        }
        text.push('\n');
    }
    let path = std::env::temp_dir().join(format!("metalcore-factor-{}.txt", std::process::id()));
    std::fs::write(&path, text)?;
    println!("wrote {}, an example of the format", path.display());
    Ok(path)
}

fn parse(text: &str) -> Result<Batch, String> {
    let mut words = text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let mut size = |name: &str| {
        let word = words.next().ok_or(format!("no {name}"))?;
        word.parse::<usize>().map_err(|_| format!("{name}: got {word}, expected a number"))
    };
    let shape = [size("matrices")?, size("rows")?, size("columns")?];
    let entry = |word: &str| word.parse::<f32>().map_err(|_| format!("an entry: got {word}, expected a number"));
    let values = words.map(entry).collect::<Result<Vec<f32>, String>>()?;
    let numel: usize = shape.iter().product();
    if values.len() != numel {
        return Err(format!("got {} entries, expected {numel}", values.len()));
    }
    Ok(Batch { shape, values })
}

fn factor<D: Run<Qr>>(device: &D, batch: &Batch) -> Result<(), Box<dyn Error>> {
    let [matrices, rows, cols] = batch.shape;
    let a = Tensor::from_slice(device, &batch.values, &batch.shape)?;
    let timed = || -> metalcore::Result<_> {
        let start = Instant::now();
        let factors = qr(a.view(), Mode::Reduced)?;
        device.wait()?;
        Ok((start.elapsed(), factors))
    };
    let (first, factors) = timed()?;
    let mut times = (0..CALLS).map(|_| Ok(timed()?.0)).collect::<metalcore::Result<Vec<Duration>>>()?;
    times.sort();
    println!("{matrices} x {rows} x {cols} on {}", device.caps().kind);
    println!("first call {first:.1?}, median of {CALLS} more {:.1?}", times[CALLS / 2]);
    let (q, r) = (factors.q.to_vec::<f32>()?, factors.r.to_vec::<f32>()?);
    let worst = reference::ratios(&batch.values, &q, &r, rows, cols, rows.min(cols));
    println!("worst |A - Q R| / (max(rows, columns) |A| u) = {:.3}", worst.reconstruction);
    println!("worst |I - Q'Q| / (rows u) = {:.3}", worst.orthogonality);
    Ok(())
}
