//! Times the operations from Rust, on the host and on an NVIDIA GPU where there is one: `cargo bench -p metalcore`; one
//! of them: `cargo bench -p metalcore -- qr`. Short by default; Criterion's own flags follow `--`. What is compared with
//! PyTorch is timed by `benchmark.py`.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use metalcore::device::{Device, cpu::Cpu};
use metalcore::{Element, Result};

#[path = "../src/ops/activations/bench.rs"]
mod activations;
#[path = "../src/ops/adamw/bench.rs"]
mod adamw;
#[path = "../src/ops/cholesky/bench.rs"]
mod cholesky;
#[path = "../src/ops/cross_entropy/bench.rs"]
mod cross_entropy;
#[path = "../src/ops/eigh/bench.rs"]
mod eigh;
#[path = "../src/ops/embedding_bag/bench.rs"]
mod embedding_bag;
#[path = "../src/ops/indexing/bench.rs"]
mod indexing;
#[path = "../src/ops/kl_div/bench.rs"]
mod kl_div;
#[path = "../src/ops/layer_norm/bench.rs"]
mod layer_norm;
#[path = "../src/ops/qr/bench.rs"]
mod qr;
#[path = "../src/ops/rms_norm/bench.rs"]
mod rms_norm;
#[path = "../src/ops/rope/bench.rs"]
mod rope;
#[path = "../src/ops/softmax/bench.rs"]
mod softmax;
#[path = "../src/ops/solve/bench.rs"]
mod solve;
#[path = "../src/ops/svd/bench.rs"]
mod svd;
#[path = "../src/ops/trsm/bench.rs"]
mod trsm;

/// Where the operations' own files put their calls.
pub struct Bench {
    criterion: Criterion,
}

impl Bench {
    /// Times a call that moves `bytes` bytes. Calls are enqueued one after the other, and waited for once.
    pub fn time<D: Device>(&mut self, device: &D, name: &str, bytes: usize, mut call: impl FnMut() -> Result<()>) {
        let mut group = self.criterion.benchmark_group(device.caps().kind);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|calls| {
                device.wait().expect("nothing has failed before");
                let start = Instant::now();
                for _ in 0..calls {
                    call().expect("a valid call");
                }
                device.wait().expect("the calls are done");
                start.elapsed()
            });
        });
    }
}

/// Values between -1 and 1, the same in every run.
pub fn values<T: Element>(count: usize) -> Vec<T> {
    (0..count).map(|i| T::from_f64(((i * 7919) % 2003) as f64 / 1001.0 - 1.0)).collect()
}

fn main() {
    let criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut bench = Bench { criterion };
    macro_rules! bench_all {
        ($($op:ident),* $(,)?) => {
            $($op::bench(&mut bench, &Cpu::new());)*
            #[cfg(feature = "cuda")]
            if metalcore::device::cuda::available() {
                let gpu = metalcore::device::cuda::Cuda::new(0).expect("a GPU is there");
                $($op::bench(&mut bench, &gpu);)*
            }
        };
    }
    bench_all!(
        activations,
        adamw,
        cholesky,
        trsm,
        solve,
        svd,
        eigh,
        cross_entropy,
        embedding_bag,
        indexing,
        kl_div,
        layer_norm,
        qr,
        rms_norm,
        rope,
        softmax
    );
    bench.criterion.final_summary();
}
