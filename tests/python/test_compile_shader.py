"""The stand-in for torch.mps.compile_shader: what it binds, and that it refuses what torch, Metal or a Mac would."""

from __future__ import annotations

import struct

import pytest
import torch
from metalcore import _native

TEXT = dict(_native.metal_texts())
COMMON = '#line 1 "common.h"'


def prelude():
    """The Metal prelude with the words shared by all targets, as they stand in a shipped text."""
    text = next(iter(TEXT.values()))
    first = text.index("#line")
    return text[first : text.index("#line", text.index(COMMON) + 1)]


KERNELS = """
struct block { uint w[WORDS]; };
G_KERNEL(words, 32, OUT(0, uint, out), PARAMS(1, block, p)) {
  const gk_ctx c = G_CTX();
  if (c.tid < WORDS) out[c.tid] = p.w[c.tid];
}
G_KERNEL(copy, 64, IN(0, float, x), OUT(1, float, y), PARAMS(2, block, p)) {
  const gk_ctx c = G_CTX();
  const uint i = c.grp * 64 + c.tid;
  if (i < p.w[0]) y[i] = x[i];
}
G_KERNEL(copy4, 32, IN(0, float, x), OUT(1, float, y), PARAMS(2, block, p)) {
  const gk_ctx c = G_CTX();
  if (4 * c.tid < p.w[0]) gk_st4(y, 4 * c.tid, gk_ld4(x, 4 * c.tid));
}
G_KERNEL(shared, 32, OUT(0, float, y), PARAMS(1, block, p)) {
  TG_ARRAY(float, memory, FLOATS);
  const gk_ctx c = G_CTX();
  memory[c.tid] = float(c.tid);
  tg_barrier();
  y[c.tid] = memory[31 - c.tid] + float(p.w[0]);
}
"""


def library(words=1, floats=32):
    """The kernels above; a parameter block of ``words`` words, ``floats`` floats of threadgroup memory."""
    return _native.compile_shader(f"#define WORDS {words}\n#define FLOATS {floats}\n{prelude()}{KERNELS}")


def bound_words(argument, count, **options):
    """The words of memory that an argument becomes."""
    out = torch.zeros(count, dtype=torch.int32)
    library(words=count).words(out, argument, threads=32, group_size=32, **options)
    return out.tolist()


# --- what works -----------------------------------------------------------------------------------


def test_kernels_are_attributes_with_the_limits_of_the_hardware():
    kernels = library()
    assert {"words", "copy", "copy4", "shared"} <= set(dir(kernels))
    assert kernels.copy.max_threads_per_threadgroup == 1024
    assert kernels.copy.thread_execution_width == 32
    with pytest.raises(AttributeError):
        _ = kernels.missing


def test_every_shipped_text_has_the_prelude_and_compiles_under_its_name():
    assert len(TEXT) > 100
    for name in list(TEXT)[:: len(TEXT) // 12]:
        assert TEXT[name].count('#line 1 "metal.h"') == 1 and TEXT[name].isascii()
        kernels = dir(_native.compile_shader(TEXT[name]))
        assert any(name.startswith(kernel) for kernel in kernels if not kernel.startswith("_")), name


def test_tensors_bind_with_their_offset_and_groups_cover_the_grid():
    x, y = torch.arange(203.0), torch.zeros(203)
    library().copy(x[2:], y[1:], [200], threads=256, group_size=64, arg_casts={2: "int32"})
    assert torch.equal(y[1:201], x[2:202]) and not y[0]


def test_an_int_is_64_bits_and_a_float_32():
    assert bound_words(5, 2) == [5, 0]
    assert bound_words(-2, 2) == [-2, -1]
    assert bound_words(1 << 40, 2) == [0, 256]
    assert bound_words(1.5, 1) == list(struct.unpack("i", struct.pack("f", 1.5)))
    assert bound_words(0.1, 1) == list(struct.unpack("i", struct.pack("f", 0.1)))


def test_lists_of_ints_are_64_bits_each_unless_cast():
    assert bound_words([1, -1], 4) == [1, 0, -1, -1]
    assert bound_words([1, -1, 7], 3, arg_casts={1: "int32"}) == [1, -1, 7]
    assert bound_words(list(struct.pack("iI", -3, 0xFEDCBA98)), 2, arg_casts={1: "uint8"}) == [-3, 0xFEDCBA98 - (1 << 32)]


def test_lists_of_floats_are_32_bits_each():
    assert bound_words([1.5, -0.25], 2) == list(struct.unpack("ii", struct.pack("ff", 1.5, -0.25)))


def test_32_kib_of_threadgroup_memory_is_allowed():
    y = torch.zeros(32)
    library(floats=8192).shared(y, [1], threads=32, group_size=32, arg_casts={1: "int32"})
    assert y.tolist() == [float(32 - i) for i in range(32)]


# --- what is refused ------------------------------------------------------------------------------


def test_text_that_is_not_ascii_is_refused():
    with pytest.raises(SyntaxError, match="ASCII"):
        _native.compile_shader(f"// \N{GREEK SMALL LETTER MU}\n#define WORDS 1\n#define FLOATS 32\n{prelude()}{KERNELS}")


def test_a_missing_or_altered_prelude_is_refused():
    defines = "#define WORDS 1\n#define FLOATS 32\n"
    for text in (defines + KERNELS, defines + prelude().replace("using namespace metal;", "") + KERNELS):
        with pytest.raises(ValueError, match="prelude"):
            _native.compile_shader(text)


def test_text_that_does_not_compile_is_refused_with_the_message():
    with pytest.raises(SyntaxError, match="not_a_word"):
        _native.compile_shader(f"#define WORDS 1\n#define FLOATS 32\n{prelude()}{KERNELS}\nnot_a_word\n")


def test_a_wrong_number_of_arguments_is_refused():
    x, y = torch.zeros(64), torch.zeros(64)
    for arguments in ((), (x,), (x, y), (x, y, [64], x)):
        with pytest.raises(RuntimeError, match="argument"):
            library().copy(*arguments, threads=64, group_size=64)


@pytest.mark.parametrize("size", [0, 32, 65, 128, 1024, 1088, None], ids=str)
def test_another_group_size_than_the_kernel_is_written_for_is_refused(size):
    with pytest.raises(RuntimeError, match="group_size"):
        library().copy(torch.zeros(64), torch.zeros(64), [64], threads=64, group_size=size, arg_casts={2: "int32"})


@pytest.mark.parametrize("threads", [0, 1, 63, 65, 100])
def test_threads_that_are_not_whole_groups_are_refused(threads):
    with pytest.raises(RuntimeError, match="threads"):
        library().copy(torch.zeros(64), torch.zeros(64), [64], threads=threads, group_size=64, arg_casts={2: "int32"})


def test_misaligned_tensors_are_refused():
    x, y = torch.zeros(65, dtype=torch.float16), torch.zeros(64)
    launch = {"group_size": 64, "threads": 64, "arg_casts": {2: "int32"}}
    with pytest.raises(RuntimeError, match="align"):
        library().copy(x[1:], y, [16], **launch)
    x = torch.zeros(65)
    library().copy4(x[4:], y, [16], threads=32, group_size=32, arg_casts={2: "int32"})
    with pytest.raises(RuntimeError, match="align"):
        library().copy4(x[1:], y, [16], threads=32, group_size=32, arg_casts={2: "int32"})


def test_reading_beyond_a_tensor_is_refused():
    with pytest.raises(RuntimeError, match="x"):
        library().copy(torch.zeros(63), torch.zeros(64), [64], threads=64, group_size=64, arg_casts={2: "int32"})


def test_two_arguments_in_the_same_memory_are_refused():
    x = torch.zeros(64)
    with pytest.raises(RuntimeError):
        library().copy(x, x, [64], threads=64, group_size=64, arg_casts={2: "int32"})


@pytest.mark.parametrize("argument", [None, "text", object(), True, False], ids=str)
def test_arguments_that_cannot_be_bound_are_type_errors(argument):
    with pytest.raises(TypeError, match="argument 1"):
        bound_words(argument, 2)


def test_tensors_and_words_in_each_others_place_are_refused():
    x = torch.zeros(64)
    for arguments in ((x, [64], x), ([1], x, [64]), (x, x.clone(), x.clone())):
        with pytest.raises(RuntimeError, match="argument"):
            library().copy(*arguments, threads=64, group_size=64)


def test_a_block_of_another_size_and_an_unknown_cast_are_refused():
    with pytest.raises(RuntimeError):
        bound_words([1, 2, 3], 2, arg_casts={1: "int32"})
    with pytest.raises(RuntimeError):
        bound_words([1, 2], 2, arg_casts={1: "float8"})


def test_more_than_32_kib_of_threadgroup_memory_is_refused():
    with pytest.raises((RuntimeError, SyntaxError), match="threadgroup"):
        library(floats=33 * 256).shared(torch.zeros(32), [1], threads=32, group_size=32, arg_casts={1: "int32"})
