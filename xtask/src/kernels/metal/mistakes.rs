//! Mistakes that Apple's compiler would refuse, or that would go wrong on one target: each is planted into a kernel
//! that is right without it, and has to be found.

use super::MetalCheck;

const METAL_PRELUDE: &str = include_str!("../../../../crates/metalcore/src/device/gpu/prelude/metal.h");
const COMMON: &str = include_str!("../../../../crates/metalcore/src/device/gpu/prelude/common.h");
const ROW_SCALE: &str = include_str!("../../../../crates/metalcore-emulator/tests/emulator/kernels/row_scale.metal");
const EXCHANGE: &str = include_str!("../../../../crates/metalcore-emulator/tests/emulator/kernels/exchange.metal");
const VOCABULARY: &str = include_str!("../../../../crates/metalcore-emulator/tests/emulator/kernels/vocabulary.metal");

/// In front of this line helpers are planted.
const HEAD: &str = "// One row.";
/// In front of this line their uses are.
const SUM: &str = "  sum = gk_tg_sum<ROW_THREADS>(sum, scratch, c);";

/// How a mistake is planted.
enum Plant {
    /// One place is replaced by another text.
    Replace(&'static str, &'static str),
    /// A helper, and a line that uses it.
    Helper(&'static str, &'static str),
    /// A line of the body.
    Line(&'static str),
}
use Plant::{Helper, Line, Replace};

/// What is planted, and a part of what the check has to say.
const MISTAKES: &[(&str, Plant, &str)] = &[
    (
        "device pointer for a threadgroup pointer",
        Replace("(sum, scratch, c)", "(sum, scale, c)"),
        "no matching function",
    ),
    (
        "thread array for a threadgroup pointer",
        Replace(SUM, "  float own[8];\n  sum = gk_tg_sum<ROW_THREADS>(sum, own, c);"),
        "no matching function",
    ),
    (
        "unqualified pointer parameter",
        Helper("G_FN float peek(const float* q) { return q[0]; }", "float own[1]; own[0] = 0.0f; sum += peek(own);"),
        "q: pointer or reference without an address-space qualifier",
    ),
    (
        "unqualified reference parameter",
        Helper("G_FN void bump(float& q) { q += 0.0f; }", "bump(sum);"),
        "q: pointer or reference without an address-space qualifier",
    ),
    (
        "parameter block for a thread reference",
        Helper("G_FN float inv(PRIVREF(const row_params) q) { return q.eps; }", "sum += inv(p);"),
        "no matching function",
    ),
    (
        "threadgroup array in a helper",
        Helper("G_FN float hidden(gk_ctx c) { TG_ARRAY(float, t, 1); return t[0]; }", "sum += hidden(c);"),
        "non-kernel function variable cannot be declared in local address space",
    ),
    (
        "threadgroup array in an inner block",
        Replace(
            "    TG_ARRAY(float, scratch, (ROW_THREADS + 31) / 32);",
            "    { TG_ARRAY(float, inner, 4); }    TG_ARRAY(float, scratch, 8);",
        ),
        "can only be declared in the outermost scope of a kernel",
    ),
    (
        "float stored to bfloat without gk_to",
        Replace("y[row + i] = gk_to<T>(gk_real(x[row + i]) * r);", "y[row + i] = gk_real(x[row + i]) * r;"),
        "no viable overloaded '='",
    ),
    ("double variable", Replace("float sum = 0.0f;", "double sum = 0.0;"), "use of type 'double'"),
    ("literal without f", Replace("sum += v * v;", "sum += v * v * 1.0;"), "double precision constant"),
    (
        "barrier flags that are not constant",
        Line(
            "#if GK_METAL\n  mem_flags f = mem_flags::mem_none; if (p.rows > 1) f = mem_flags::mem_threadgroup; threadgroup_barrier(f);\n#endif",
        ),
        "no matching function for call to 'msl_tg_barrier_'",
    ),
    ("half and float mixed in max", Line("#if GK_METAL\n  sum += float(max(half(sum), 1.0f));\n#endif"), "ambiguous"),
    (
        "simd_sum of bfloat",
        Line("#if GK_METAL\n  sum += float(simd_sum(bfloat(sum)));\n#endif"),
        "deleted function 'simd_sum'",
    ),
    ("CUDA names", Line("  __syncthreads();\n  sum = sqrtf(sum);"), "undeclared identifier '__syncthreads'"),
    ("lambda", Line("  auto square = [](float q) { return q; };\n  sum = square(sum);"), "lambda"),
    (
        "mutable program-scope variable",
        Helper("static float seen = 1.0f;\nG_FN float cached() { return seen; }", "sum += cached();"),
        "program scope variable",
    ),
    (
        "static local",
        Helper("G_FN float count() { static int n = 0; return float(n); }", "sum += count();"),
        "static local",
    ),
    (
        "recursion",
        Helper(
            "static float f(float q, uint n);\nG_FN float g(float q, uint n) { return q * f(q, n - 1); }\n\
             static float f(float q, uint n) { return n == 0 ? q : g(q, n); }",
            "sum = f(sum, 0u);",
        ),
        "recursion",
    ),
    ("long long", Line("  long long big = 1; sum += float(big);"), "long long"),
    ("bool in the parameter block", Replace("uint vec; float eps;", "bool vec; float eps;"), "field vec is bool"),
    ("real in the parameter block", Replace("uint vec; float eps;", "uint vec; real eps;"), "field eps is real"),
    (
        "too large a parameter block",
        Replace("uint vec; float eps;", "uint vec; float eps[1021];"),
        "row_params: 4100 bytes of parameters, at most 4096",
    ),
    (
        "member function of a device object",
        Helper(
            "struct point { float v; float get() const { return v; } };\nG_FN float use(DEV(point) q) { return q[0].get(); }",
            "",
        ),
        "to the generic address space",
    ),
    (
        "unqualified reference to a device element",
        Helper("G_FN float use(DEV(const float) q) { const float& e = q[0]; return e; }", ""),
        "e: pointer or reference without an address-space qualifier",
    ),
    (
        "name of a Metal function",
        Helper("G_FN float saturate(float q) { return q; }", "sum = saturate(sum);"),
        "ambiguous",
    ),
    ("Metal keyword as a name", Line("  uint thread = c.tid; sum += float(thread);"), "error"),
    ("Metal keyword that clang does not know", Line("  uint fragment = c.tid; sum += float(fragment);"), "error"),
    (
        "initialised threadgroup array",
        Replace("(ROW_THREADS + 31) / 32);", "(ROW_THREADS + 31) / 32) = {0.0f};"),
        "cannot have an initializer",
    ),
    ("character that is not ASCII", Replace(HEAD, "// na\u{ef}ve\n// One row."), "not ASCII"),
    ("goto", Line("  if (p.rows == 0) goto end_;\nend_:"), "goto"),
    ("buffer index used twice", Replace("OUT(2, float, scale)", "OUT(1, float, scale)"), "buffers [0, 1, 1, 3]"),
    ("C++17", Line("  if constexpr (ROW_THREADS > 32) sum += 0.0f;"), "C++"),
    ("swizzle", Replace("sum += v4_dot(v, v);", "sum += v.xy.x;"), "no member named 'xy'"),
    (
        "threadgroup pointer kept in a structure",
        Helper("struct tile { float* p; };", "tile t; t.p = scratch;"),
        "p: pointer or reference without an address-space qualifier",
    ),
    ("union", Helper("union both { float f; uint u; };", "both z; z.f = sum; sum = z.f;"), "both: union"),
    ("cast to an unqualified pointer", Line("  float own = sum; sum += float(*(uint*)&own);"), "cast to uint *"),
    ("derived class", Helper("struct a_ { float v; };\nstruct b_ : a_ { float w; };", ""), "b_: derived class"),
    (
        "more than 1024 threads",
        Replace("#define ROW_THREADS 256", "#define ROW_THREADS 1056"),
        "1056 threads, not a multiple of 32 up to 1024",
    ),
    (
        "more than 32 KiB of threadgroup memory",
        Replace("(ROW_THREADS + 31) / 32);", "(ROW_THREADS + 31) / 32); TG_ARRAY(float, more, 8192);"),
        "32800 bytes of threadgroup memory",
    ),
];

fn text(body: &str) -> String {
    format!(
        "#define GK_F64 0\n#line 1 \"metal.h\"\n{METAL_PRELUDE}#line 1 \"common.h\"\n{COMMON}#line 1 \"body.metal\"\n{body}"
    )
}

fn replaced(body: &str, from: &str, to: &str) -> String {
    assert!(body.contains(from), "{from}");
    body.replacen(from, to, 1)
}

impl Plant {
    fn body(&self) -> String {
        match self {
            Replace(from, to) => replaced(ROW_SCALE, from, to),
            Helper(helper, line) => {
                replaced(&replaced(ROW_SCALE, HEAD, &format!("{helper}\n{HEAD}")), SUM, &format!("  {line}\n{SUM}"))
            }
            Line(line) => replaced(ROW_SCALE, SUM, &format!("{line}\n{SUM}")),
        }
    }
}

/// Runs a check on a stack that is large enough for it.
fn on_large_stack(check: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(crate::kernels::STACK_BYTES);
        builder.spawn_scoped(scope, check).unwrap().join().unwrap();
    });
}

#[test]
fn kernels_without_a_mistake_pass() {
    on_large_stack(|| {
        let check = MetalCheck::new().unwrap();
        for body in [ROW_SCALE, EXCHANGE, VOCABULARY] {
            assert_eq!(check.check(&text(body), None).unwrap(), [""; 0]);
        }
    });
}

#[test]
fn every_planted_mistake_is_found() {
    on_large_stack(|| {
        let check = MetalCheck::new().unwrap();
        let mut missed = Vec::new();
        for (name, plant, expected) in MISTAKES {
            let findings = check.check(&text(&plant.body()), None).unwrap();
            if !findings.iter().any(|finding| finding.contains(expected)) {
                missed.push(format!("{name}: {findings:?} without {expected}"));
            }
        }
        assert!(missed.is_empty(), "{}", missed.join("\n"));
    });
}

#[test]
fn what_metal_allows_is_no_finding() {
    on_large_stack(|| {
        let check = MetalCheck::new().unwrap();
        let allowed = [
            Line("  long big = 1; sum += 0.0f * float(big);"),
            Line("  DEV(float) q = &scale[c.grp]; q[0] = sum;"),
            Line("  const row_params q = p; sum += q.eps;"),
            Helper(
                "struct inner_ { float v; };\nG_FN float of(inner_ i) { return i.v; }",
                "inner_ i; i.v = sum; sum = of(i);",
            ),
        ];
        for plant in allowed {
            assert_eq!(check.check(&text(&plant.body()), None).unwrap(), [""; 0]);
        }
    });
}

#[test]
fn a_launch_with_other_threads_than_declared_is_found() {
    on_large_stack(|| {
        let check = MetalCheck::new().unwrap();
        let findings = check.check(&text(ROW_SCALE), Some(("row_scale_f16", 128))).unwrap();
        assert_eq!(findings, ["body.metal:35: row_scale_f16: declares 256 threads, launched with 128"]);
    });
}
