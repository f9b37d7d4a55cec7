"""Every test that takes ``device`` runs on every device there is: cpu, cuda, mps; with METALCORE_EMULATE=1 on cpu tensors
through the kernel emulator alone. ``dtype`` gives the floating dtypes that the device has. What is not there is reported.
"""

from __future__ import annotations

import metalcore
import pytest
import support
import torch

EMULATOR = "emulator"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _devices() -> tuple[dict[str, str], dict[str, str]]:
    """(name of what is tested: torch device), (name of what is not: reason)."""
    if metalcore.config.emulate:
        reason = "the emulator is tested alone"
        return {EMULATOR: "cpu"}, {"cpu": reason, "cuda": reason, "mps": reason}
    there = {"cpu": True, "cuda": metalcore.has_cuda_kernels(), "mps": metalcore.has_metal_kernels()}
    asked = metalcore.config.device
    tested, skipped = {}, {}
    for name, usable in there.items():
        if not usable:
            skipped[name] = "no GPU"
        elif asked is not None and asked.split(":")[0] != name:
            skipped[name] = f"METALCORE_DEVICE is {asked}"
        else:
            tested[name] = asked if asked is not None else name
    return tested, skipped


TESTED, SKIPPED = _devices()
# Marker -> where a test with it runs.
_PLACES = {"native": ("cpu", "cuda", "mps"), "emulated": (EMULATOR,), "host": ("cpu", EMULATOR), "cuda": ("cuda",)}


def _dtypes(name: str) -> tuple[torch.dtype, ...]:
    return tuple(d for d in DTYPES if d != torch.float64 or name not in (EMULATOR, "mps"))


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="run the slow exhaustive tests too")


def pytest_configure(config):
    if not TESTED:
        raise pytest.UsageError(f"METALCORE_DEVICE is {metalcore.config.device}, which is not there")
    config.addinivalue_line("markers", "nightly: slow and exhaustive; runs with --nightly")
    config.addinivalue_line("markers", "dtypes(*dtypes, nightly=()): the dtypes that a test with `dtype` runs for")
    config.addinivalue_line("markers", "native: needs kernels that run at full speed; not for the emulator")
    config.addinivalue_line("markers", "emulated: is about the emulator's rules; not for other devices")
    config.addinivalue_line("markers", "host: is about work of the host; for cpu and the emulator")
    config.addinivalue_line("markers", "cuda: is about streams and graphs of CUDA; not for other devices")
    config.addinivalue_line("markers", "absent: no device for this test")


def _places(metafunc) -> list[str]:
    names = list(TESTED)
    for marker, wanted in _PLACES.items():
        if metafunc.definition.get_closest_marker(marker):
            names = [name for name in names if name in wanted]
    return names


def pytest_generate_tests(metafunc):
    if "device" not in metafunc.fixturenames:
        return
    names = _places(metafunc)
    absent = [pytest.mark.absent]
    if "dtype" not in metafunc.fixturenames:
        rows = [pytest.param(torch.device(TESTED[name]), id=name) for name in names]
        metafunc.parametrize("device", rows or [pytest.param(None, marks=absent)])
        return
    marker = metafunc.definition.get_closest_marker("dtypes")
    at_night = marker.kwargs.get("nightly", ()) if marker else ()
    wanted = (*marker.args, *at_night) if marker else DTYPES
    rows = [
        pytest.param(
            torch.device(TESTED[name]),
            dtype,
            id=f"{name}-{str(dtype).removeprefix('torch.')}",
            marks=[pytest.mark.nightly] if dtype in at_night else [],
        )
        for name in names
        for dtype in _dtypes(name)
        if dtype in wanted
    ]
    metafunc.parametrize("device, dtype", rows or [pytest.param(None, None, marks=absent)])


def pytest_collection_modifyitems(config, items):
    left_out = ["absent"] if config.getoption("--nightly") else ["absent", "nightly"]
    deselected = [item for item in items if any(item.get_closest_marker(name) for name in left_out)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers in every test, whatever ran before."""
    torch.manual_seed(20260101)


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    for line in support.ratio_table():
        write(line)
    tested = ", ".join(TESTED) or "none"
    skipped = ", ".join(f"{name} ({reason})" for name, reason in SKIPPED.items()) or "none"
    write(f"devices tested: {tested}; skipped: {skipped}")
