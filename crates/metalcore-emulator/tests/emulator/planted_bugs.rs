//! Each bug is planted into a kernel that is right without it; the emulator says what is wrong, and where.

use crate::support::{Memory, library, run};
use metalcore_emulator::{Error, Options, Schedule, Stats};

const ROW_SCALE: &str = include_str!("kernels/row_scale.metal");
const EXCHANGE: &str = include_str!("kernels/exchange.metal");

/// The line of `row_scale.metal` in front of which bugs are planted.
const SUM: &str = "  sum = gk_tg_sum<ROW_THREADS>(sum, scratch, c);";

/// A text with one place changed.
fn planted(body: &str, from: &str, to: &str) -> String {
    assert_eq!(body.matches(from).count(), 1, "{from}");
    body.replace(from, to)
}

fn message(result: Result<Stats, Error>) -> String {
    match result.unwrap_err() {
        Error::Launch(message) => message,
        other => panic!("{other}"),
    }
}

fn assert_says(result: Result<Stats, Error>, expected: &str) {
    let message = message(result);
    assert!(message.contains(expected), "{message}\nand not\n{expected}");
}

/// A launch of `row_scale_f32`.
struct Rows {
    rows: u32,
    cols: u32,
    stride: u32,
    vec: u32,
    groups: u32,
    threads: u32,
}
const ROWS: Rows = Rows { rows: 2, cols: 100, stride: 100, vec: 1, groups: 2, threads: 256 };

impl Rows {
    fn run(&self, body: &str) -> Result<Stats, Error> {
        self.outputs(body, &Options::default()).map(|(stats, _)| stats)
    }

    fn outputs(&self, body: &str, options: &Options) -> Result<(Stats, Vec<f32>), Error> {
        let library = library(&[("ROW_THREADS", self.threads)], "row_scale.metal", body)?;
        let count = (self.rows * self.stride) as usize;
        let mut x = Memory::of(&(0..count).map(|i| (i % 7) as f32 - 2.5).collect::<Vec<_>>());
        let (mut y, mut scale) = (Memory::new::<f32>(count), Memory::new::<f32>(self.rows as usize));
        let params = [self.rows, self.cols, self.stride, self.vec, 1e-6f32.to_bits()];
        let stats = run(&library, "row_scale_f32", self.groups, &mut [&mut x, &mut y, &mut scale], &params, options)?;
        Ok((stats, y.to()))
    }
}

/// A launch of a kernel of `exchange.metal` on two groups, or one.
fn exchange(body: &str, kernel: &str, groups: u32, options: &Options) -> Result<Vec<f32>, Error> {
    let library = library(&[], "exchange.metal", body)?;
    let count = 64 * groups as usize;
    let mut x = Memory::of(&(0..count).map(|i| i as f32).collect::<Vec<_>>());
    let mut y = Memory::new::<f32>(count);
    run(&library, kernel, groups, &mut [&mut x, &mut y], &[count as u32], options)?;
    Ok(y.to())
}

fn assert_exchange_says(from: &str, to: &str, kernel: &str, expected: &str) {
    let result = exchange(&planted(EXCHANGE, from, to), kernel, 1, &Options::default());
    assert_says(result.map(|_| Stats::default()), expected);
}

#[test]
fn without_a_bug_every_schedule_gives_the_same_bits() {
    let run = |schedule| {
        let options = Options { schedule, ..Options::default() };
        let (_, y) = ROWS.outputs(ROW_SCALE, &options).unwrap();
        let reversed = exchange(EXCHANGE, "reverse_group", 2, &options).unwrap();
        let totals = exchange(EXCHANGE, "simd_total", 2, &options).unwrap();
        let neighbours = exchange(EXCHANGE, "device_neighbour", 1, &options).unwrap();
        [y, reversed, totals, neighbours]
    };
    let forward = run(Schedule::Forward);
    assert_eq!(forward[1][0], 63.0);
    assert_eq!(forward[2][40], (32..64).sum::<i32>() as f32);
    assert_eq!(forward[3][2], 10.0);
    for schedule in [Schedule::Reverse, Schedule::Random(3), Schedule::Random(4)] {
        assert_eq!(run(schedule), forward, "{schedule:?}");
    }
}

#[test]
fn several_workers_give_the_same_bits() {
    let run = |workers| exchange(EXCHANGE, "reverse_group", 50, &Options { workers, ..Options::default() }).unwrap();
    assert_eq!(run(3), run(1));
}

#[test]
fn a_tail_read_past_the_end() {
    let body = planted(ROW_SCALE, "i < p.cols; i += ROW_THREADS) {", "i < p.cols + 1; i += ROW_THREADS) {");
    let rows = Rows { rows: 1, cols: 101, stride: 101, groups: 1, ..ROWS };
    assert_says(
        rows.run(&body),
        "row_scale_f32: group 0 thread 1: out-of-bounds read: x[101] of 101 elements of 4 bytes",
    );
}

#[test]
fn an_index_below_zero() {
    let body = planted(ROW_SCALE, "const float v = gk_real(x[row + i]);", "const float v = gk_real(x[row + i - 1]);");
    let rows = Rows { cols: 3, stride: 3, vec: 0, ..ROWS };
    assert_says(rows.run(&body), "group 0 thread 0: out-of-bounds read: x[-1] of 6 elements");
}

#[test]
fn a_vector_read_of_a_misaligned_row() {
    let rows = Rows { cols: 7, stride: 7, ..ROWS };
    assert_says(
        rows.run(ROW_SCALE),
        "group 1 thread 0: misaligned 4-wide read: x[7], address not a multiple of 16 bytes",
    );
}

#[test]
fn a_vector_read_past_the_end() {
    let body = planted(ROW_SCALE, "p.cols / 4 * 4 : 0", "(p.cols + 3) / 4 * 4 : 0");
    let rows = Rows { rows: 1, cols: 101, stride: 101, groups: 1, ..ROWS };
    assert_says(rows.run(&body), "thread 25: out-of-bounds read: x[101] of 101 elements");
}

#[test]
fn a_missing_group_barrier() {
    assert_exchange_says(
        "  tg_barrier();\n  y[64",
        "  y[64",
        "reverse_group",
        "group 0 thread 0: read of uninitialised threadgroup memory: tile[63]",
    );
}

#[test]
fn a_missing_group_barrier_before_a_second_use() {
    assert_exchange_says(
        "tile[63 - c.tid];",
        "tile[63 - c.tid];\n  tile[c.tid] = 0.0f;",
        "reverse_group",
        "thread 32: race: tile[31] was written by thread 31 and is now read with no barrier between",
    );
}

#[test]
fn a_missing_simd_barrier_after_a_write() {
    assert_exchange_says(
        "    sg_barrier();\n    sum",
        "    sum",
        "simd_total",
        "group 0 thread 1: race: box[0] was written by thread 0 and is now read with no barrier between",
    );
}

#[test]
fn a_missing_simd_barrier_before_the_next_write() {
    assert_exchange_says(
        "box[c.sg];\n    sg_barrier();",
        "box[c.sg];",
        "simd_total",
        "and is now written with no barrier between",
    );
}

#[test]
fn a_missing_simd_barrier_before_a_write_by_the_last_reader() {
    assert_exchange_says(
        "    if (c.lane == k) box[c.sg] = x[i];\n    sg_barrier();\n    sum += box[c.sg];\n    sg_barrier();",
        "    if (c.lane == 30) box[c.sg] = x[i];\n    sg_barrier();\n    sum += box[c.sg];\n    if (c.lane == 30) box[c.sg] = 0.0f;",
        "simd_total",
        "group 0 thread 30: race: box[0] was read by thread 29 and is now written with no barrier between",
    );
}

#[test]
fn a_simd_barrier_between_two_simd_groups() {
    assert_exchange_says(
        "  tg_barrier();\n  y[64",
        "  sg_barrier();\n  y[64",
        "reverse_group",
        "group 0 thread 31: read of uninitialised threadgroup memory: tile[32]",
    );
}

#[test]
fn device_memory_behind_a_threadgroup_barrier() {
    assert_exchange_says(
        "tg_barrier_dev();",
        "tg_barrier();",
        "device_neighbour",
        "group 0 thread 0: race: x[1] was written by thread 1 and is now read with no device-memory barrier between",
    );
}

#[test]
fn two_groups_at_one_element() {
    let body = planted(ROW_SCALE, "scale[c.grp] = r;", "scale[0] = r;");
    assert_says(
        ROWS.run(&body),
        "group 1 thread 0: race: scale[0] was written by group 0 in this launch and is now written",
    );
}

#[test]
fn a_barrier_under_a_condition() {
    let body = planted(ROW_SCALE, SUM, &format!("  if (c.tid < 64) tg_barrier();\n{SUM}"));
    let message = message(ROWS.run(&body));
    assert!(message.contains("divergent barrier: common.h:"), "{message}");
    assert!(message.contains("while another thread waits at row_scale.metal:"), "{message}");
}

#[test]
fn a_return_before_a_barrier() {
    let body = planted(ROW_SCALE, SUM, &format!("  if (c.tid >= p.cols) return;\n{SUM}"));
    let message = message(ROWS.run(&body));
    assert!(
        message.contains("group 0: divergent barrier (deadlock): thread 0 waits in tg_barrier at common.h:"),
        "{message}"
    );
    assert!(message.contains("thread 96 waits in sg_sum at common.h:"), "{message}");
    assert!(message.contains("thread 100 has returned"), "{message}");
}

#[test]
fn a_simd_sum_under_a_lane_condition() {
    let body = planted(ROW_SCALE, SUM, &format!("  if (c.lane < p.cols % 32) sum = sg_sum(sum);\n{SUM}"));
    let message = message(ROWS.run(&body));
    assert!(message.contains("group 0 thread 4: divergent simd-group operation: sg_sum at common.h:"), "{message}");
    assert!(message.contains("while another lane waits in sg_sum at row_scale.metal:"), "{message}");
}

#[test]
fn a_barrier_in_a_loop_of_unequal_length() {
    let body = planted(ROW_SCALE, SUM, &format!("  for (uint i = c.tid; i < p.cols; i += 256) tg_barrier();\n{SUM}"));
    assert_says(ROWS.run(&body), "divergent barrier: common.h:");
}

#[test]
fn uninitialised_threadgroup_memory() {
    let body = planted(ROW_SCALE, SUM, &format!("  sum += scratch[c.sg];\n{SUM}"));
    assert_says(ROWS.run(&body), "group 0 thread 0: read of uninitialised threadgroup memory: scratch[0]");
}

#[test]
fn a_threadgroup_array_out_of_bounds() {
    let body = planted(ROW_SCALE, SUM, &format!("  scratch[c.tid] = sum;\n{SUM}"));
    assert_says(ROWS.run(&body), "group 0 thread 8: out-of-bounds write: scratch[8] of 8 elements of 4 bytes");
}

#[test]
fn a_misaligned_threadgroup_vector() {
    let body = planted(ROW_SCALE, SUM, &format!("  if (c.lane == 0) gk_tg_st4(scratch, 2 * c.sg, v4(sum));\n{SUM}"));
    assert_says(ROWS.run(&body), "thread 32: misaligned 4-wide access: scratch[2], not a multiple of 4");
}

#[test]
fn thirty_three_kib_of_threadgroup_memory() {
    let body = planted(EXCHANGE, "TG_ARRAY(float, tile, 64);", "TG_ARRAY(float, tile, 33 * 256);");
    let result = exchange(&body, "reverse_group", 1, &Options::default()).map(|_| Stats::default());
    assert_says(result, "reverse_group: group 0 thread 0: threadgroup memory: 33792 bytes with tile, limit 32768");
    // CUDA has more, and a kernel of its own may use it.
    let options = Options { threadgroup_limit: 48 * 1024, ..Options::default() };
    assert_eq!(exchange(&body, "reverse_group", 1, &options).unwrap()[0], 63.0);
}

#[test]
fn groups_of_1056_threads() {
    assert_says(Rows { threads: 1056, ..ROWS }.run(ROW_SCALE), "group size 1056: not a multiple of 32 up to 1024");
    Rows { threads: 1024, ..ROWS }.run(ROW_SCALE).unwrap();
}

#[test]
fn a_group_size_that_is_no_multiple_of_32() {
    assert_says(Rows { threads: 48, ..ROWS }.run(ROW_SCALE), "group size 48: not a multiple of 32 up to 1024");
}

#[test]
fn a_parameter_block_of_the_wrong_size() {
    let library = library(&[], "row_scale.metal", ROW_SCALE).unwrap();
    let [mut x, mut y, mut scale] = [0; 3].map(|_| Memory::new::<f32>(100));
    let result =
        run(&library, "row_scale_f32", 1, &mut [&mut x, &mut y, &mut scale], &[1, 2, 3, 4], &Options::default());
    assert_says(result, "row_scale_f32: parameter block p of 16 bytes, kernel expects 20");
}

#[test]
fn a_missing_argument() {
    let library = library(&[], "row_scale.metal", ROW_SCALE).unwrap();
    let mut x = Memory::new::<f32>(100);
    let result = run(&library, "row_scale_f32", 1, &mut [&mut x], &[0; 5], &Options::default());
    assert_says(result, "row_scale_f32: 2 arguments, kernel takes 4");
}

#[test]
fn an_index_that_is_not_the_position() {
    let body = planted(
        EXCHANGE,
        "G_KERNEL(simd_total, 64, IN(0, float, x), OUT(1,",
        "G_KERNEL(simd_total, 64, IN(0, float, x), OUT(2,",
    );
    let result = exchange(&body, "simd_total", 1, &Options::default()).map(|_| Stats::default());
    assert_says(result, "simd_total: y is argument 1 and declared with index 2");
}

#[test]
fn an_output_that_nobody_writes_stays_nan() {
    let (_, y) = Rows { groups: 1, ..ROWS }.outputs(ROW_SCALE, &Options::default()).unwrap();
    assert!(y[..100].iter().all(|v| v.is_finite()));
    assert!(y[100..].iter().all(|v| v.is_nan()));
}

#[test]
fn a_register_that_nobody_writes_spoils_the_result() {
    let body = planted(ROW_SCALE, "float sum = 0.0f;", "float partial[4]; float sum = partial[c.tid & 3u];");
    let (_, y) = ROWS.outputs(&body, &Options::default()).unwrap();
    let (_, right) = ROWS.outputs(ROW_SCALE, &Options::default()).unwrap();
    assert!(y.iter().zip(&right).all(|(y, right)| y.is_nan() || (y - right).abs() > 1e-3), "{y:?}");
}

#[test]
fn arguments_that_share_memory() {
    let library = library(&[], "row_scale.metal", ROW_SCALE).unwrap();
    let mut memory = Memory::of(&[1f32; 200]);
    let mut scale = Memory::new::<f32>(2);
    let params: Vec<u8> = [2, 100, 100, 1, 0u32].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let args = [memory.arg(), memory.arg(), scale.arg(), metalcore_emulator::Arg::Params(&params)];
    // SAFETY: The buffers are borrowed for the call, and hold plain numbers.
    let result = unsafe { library.launch("row_scale_f32", 2, 256, &args, &Options::default()) };
    assert_says(result, "read of x[0], whose memory is y's too: only IO arguments may overlap");
}
