"""Settings: environment, attributes, `using`, threads, the names of 0.1.16, and what surrounds them at the top of the package."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import subprocess
import sys
import threading
import warnings
from importlib.metadata import version

import metalcore
import pytest
import torch
from metalcore import config

NAMES = ("fallback", "device", "cache_dir", "emulate", "num_threads")
PRINT = "import metalcore; c = metalcore.config; print(c.fallback, c.device, c.cache_dir, c.emulate, c.num_threads)"


def in_fresh_python(text, **environment):
    """(status, output, error text) of a new interpreter with these METALCORE_ variables and no others."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("METALCORE_")}
    env.update({f"METALCORE_{name}": value for name, value in environment.items()})
    result = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, env=env)
    return result.returncode, result.stdout.strip(), result.stderr


@pytest.fixture(autouse=True)
def as_before():
    """Settings are left as they were found."""
    values = {name: getattr(config, name) for name in NAMES if name != "cache_dir"}
    yield
    for name, value in values.items():
        setattr(config, name, value)


# --- environment ----------------------------------------------------------------------------------


def test_the_environment_is_read_at_import():
    code, out, err = in_fresh_python(
        PRINT, FALLBACK="error", DEVICE="cuda:1", CACHE_DIR="somewhere", EMULATE="1", NUM_THREADS="3"
    )
    assert code == 0, err
    assert out == "error cuda:1 somewhere True 3"


def test_an_empty_variable_is_like_none_and_defaults_hold():
    code, out, err = in_fresh_python(
        PRINT, **{name: "" for name in ("FALLBACK", "DEVICE", "CACHE_DIR", "EMULATE", "NUM_THREADS")}
    )
    assert code == 0, err
    fallback, _, cache_dir, emulate, _ = out.split()
    assert (fallback, emulate) == ("warn", "False")
    assert pathlib.Path(cache_dir).name == "metalcore" and pathlib.Path(cache_dir).is_absolute()


WRONG_VARIABLES = [
    ("FALLBACK", "sometimes"), ("DEVICE", "tpu"), ("DEVICE", "cuda:x"), ("EMULATE", "maybe"), ("NUM_THREADS", "0"), ("NUM_THREADS", "many"),
]  # fmt: skip
IMPORTS = f"""
import os, sys
for name, value in {WRONG_VARIABLES}:
    os.environ["METALCORE_" + name] = value
    try:
        import metalcore
        print("imported")
    except ValueError as error:
        print(error)
    del os.environ["METALCORE_" + name]
    for module in ("metalcore", "metalcore.config"):
        sys.modules.pop(module, None)
"""


def test_a_wrong_variable_is_a_value_error_at_import_that_names_it():
    code, out, err = in_fresh_python(IMPORTS)
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == len(WRONG_VARIABLES)
    for line, (name, value) in zip(lines, WRONG_VARIABLES):
        assert re.search(f"config: {name.lower()}: got .*{value}.*, expected ", line), f"{name}={value}: {line}"


LATER = """
import os, metalcore
os.environ["METALCORE_FALLBACK"] = "warn"
print(metalcore.config.fallback)
metalcore.config.fallback = "silent"
print(metalcore.config.fallback)
"""


def test_a_value_set_in_python_wins_and_later_changes_of_the_environment_do_nothing():
    assert in_fresh_python(LATER, FALLBACK="error")[1].split() == ["error", "silent"]


EMULATED = """
import torch, metalcore
A = torch.ones(2, 3, 3)
Q, R = metalcore.qr(A)
print(bool(((Q @ R - A).abs() < 1e-5).all()))
try:
    metalcore.qr(A.double())
except TypeError as error:
    print("mps" in str(error))
"""


@pytest.mark.parametrize("where", ["file", "missing"])
def test_a_cache_directory_that_cannot_be_written_is_no_error(tmp_path, where):
    place = tmp_path / "place"
    place.write_text("not a directory")
    code, out, err = in_fresh_python(EMULATED, EMULATE="1", CACHE_DIR=str(place if where == "file" else place / "below"))
    assert code == 0, err
    assert out.split() == ["True", "True"]
    assert place.read_text() == "not a directory"


def test_compiled_kernels_are_kept_in_the_cache_directory(tmp_path):
    for _ in range(2):
        code, out, err = in_fresh_python(EMULATED, EMULATE="1", CACHE_DIR=str(tmp_path / "new" / "cache"))
        assert code == 0, err
        assert out.split() == ["True", "True"]
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "new" / "cache").rglob("*") if path.is_file()}
        assert files
    assert in_fresh_python(PRINT, CACHE_DIR=str(tmp_path))[1].split()[2] == str(tmp_path)


# --- attributes and using -------------------------------------------------------------------------

VALID = {
    "fallback": ["error", "warn", "silent"],
    "device": ["cpu", "cuda", "cuda:1", "cuda:12", "mps", None],
    "num_threads": [1, 7, None],
}
INVALID = {
    "fallback": ["never", "", None, 1],
    "device": ["gpu", "cuda:", "cpu:0:1", "", 0],
    "num_threads": [0, -1, 1.5, True, "all"],
    "emulate": ["yes", 2, None],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in VALID.items() for value in values], ids=str)
def test_attributes_and_using_set_values(name, value):
    before = getattr(config, name)
    with config.using(**{name: value}):
        assert getattr(config, name) == value
        assert getattr(metalcore.config, name) == value
    assert getattr(config, name) == before
    setattr(config, name, value)
    assert getattr(config, name) == value


@pytest.mark.parametrize("name, value", [(name, value) for name, values in INVALID.items() for value in values], ids=str)
def test_wrong_values_are_value_errors_and_change_nothing(name, value):
    before = getattr(config, name)
    with pytest.raises(ValueError, match=name):
        setattr(config, name, value)
    with pytest.raises(ValueError, match=name), config.using(**{name: value}):
        pass
    assert getattr(config, name) == before


def test_unknown_names_are_value_errors():
    with pytest.raises(ValueError, match="fallbak"):
        config.fallbak = "warn"
    with pytest.raises(ValueError, match="fallbak"), config.using(fallbak="warn"):
        pass
    with pytest.raises(AttributeError):
        _ = config.fallbak


def test_one_wrong_value_among_several_changes_none():
    before = {name: getattr(config, name) for name in NAMES}
    with pytest.raises(ValueError), config.using(fallback="error", num_threads=3, device="tpu"):
        pass
    assert {name: getattr(config, name) for name in NAMES} == before


def test_using_nests_and_restores_after_an_error():
    config.fallback = "warn"
    with config.using(fallback="error", num_threads=2):
        with config.using(fallback="silent"):
            assert (config.fallback, config.num_threads) == ("silent", 2)
        assert config.fallback == "error"
        with pytest.raises(KeyError), config.using(fallback="silent"):
            raise KeyError
        assert config.fallback == "error"
    assert config.fallback == "warn"


def seen_by_another_thread(name):
    found = []
    thread = threading.Thread(target=lambda: found.append(getattr(config, name)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("name, value", [("fallback", "error"), ("device", "cuda:3"), ("num_threads", 5)])
def test_using_is_for_its_thread_and_attributes_for_all(name, value):
    before = getattr(config, name)
    with config.using(**{name: value}):
        assert getattr(config, name) == value
        assert seen_by_another_thread(name) == before
    setattr(config, name, value)
    assert seen_by_another_thread(name) == value


def test_two_threads_use_different_values_at_once():
    barrier, found = threading.Barrier(2), {}

    def work(value):
        with config.using(fallback=value):
            barrier.wait()
            found[value] = config.fallback
            barrier.wait()

    threads = [threading.Thread(target=work, args=(value,)) for value in ("error", "silent")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"error": "error", "silent": "silent"}


def test_settings_are_listed():
    assert set(NAMES) <= set(dir(config))


def test_emulation_can_be_turned_on_and_off():
    A = torch.randn(2, 3, 3, dtype=torch.float64)
    with config.using(emulate=True):
        assert config.emulate is True
        with pytest.raises(TypeError, match="mps"):
            metalcore.qr(A)
        assert metalcore.qr(A.float()).R.shape == (2, 3, 3)
    config.emulate = False
    assert metalcore.qr(A).R.dtype == torch.float64


# --- the names of 0.1.16 --------------------------------------------------------------------------


def test_enable_cpu_fallback_is_the_fallback_policy():
    config.ENABLE_CPU_FALLBACK = False
    assert config.fallback == "error" and config.ENABLE_CPU_FALLBACK is False
    config.ENABLE_CPU_FALLBACK = True
    assert config.fallback == "warn" and config.ENABLE_CPU_FALLBACK is True


@pytest.mark.parametrize("name", ["GRAM_THRESHOLD", "ENABLE_DE_RIJK_OPT"])
def test_retired_names_are_readable_and_setting_them_warns_without_effect(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = getattr(config, name)
    with pytest.warns(match=name):
        setattr(config, name, 12345)
    assert getattr(config, name) == before


# --- the package ----------------------------------------------------------------------------------


def test_the_package_says_what_it_is_and_has():
    assert metalcore.__version__ == version("metalcore") and isinstance(metalcore.__version__, str)
    assert metalcore.has_cuda_kernels() is torch.cuda.is_available()
    assert metalcore.has_metal_kernels() is torch.backends.mps.is_available()
    assert all(hasattr(metalcore, name) for name in metalcore.__all__)


def test_importing_prints_and_warns_nothing():
    code, out, err = in_fresh_python("import warnings; warnings.simplefilter('error'); import metalcore")
    assert (code, out, err) == (0, "", "")


def test_a_second_import_is_the_same_module():
    assert importlib.import_module("metalcore.config") is config is metalcore.config
