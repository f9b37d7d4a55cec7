"""Settings. A value set here wins over the environment, which is read once, at import.

============  =======================  ==================================================================================
attribute     environment              values
============  =======================  ==================================================================================
fallback      METALCORE_FALLBACK       work for a GPU tensor done on the host: 'error', 'warn' (default), 'silent'
device        METALCORE_DEVICE         'cpu', 'cuda', 'cuda:1', 'mps': default of the benchmark and the tests
cache_dir     METALCORE_CACHE_DIR      compiled kernels; default: the user's cache directory + metalcore
emulate       METALCORE_EMULATE        True: cpu tensors take the GPU path through the kernel emulator (process-wide; for tests)
num_threads   METALCORE_NUM_THREADS    threads of cpu operators; None (default): torch.get_num_threads() at each call
============  =======================  ==================================================================================

``with config.using(fallback="error"): ...`` sets values for a block, in this thread.
"""

import contextlib
import os
import pathlib
import re
import sys
import threading
import types
import warnings
from typing import Any, Callable, Iterator

from . import _native


def _choice(*values: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"got {value!r}, expected one of {', '.join(map(repr, values))}")
        return value

    return check


def _device(value: Any) -> Any:
    if value is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(value)):
        raise ValueError(f"got {value!r}, expected 'cpu', 'cuda', 'cuda:<index>' or 'mps'")
    return value if value is None else str(value)


def _threads(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"got {value!r}, expected a number of threads or None")
    return int(value)


def _flag(value: Any) -> bool:
    if value in (True, "1"):
        return True
    if value in (False, "0", ""):
        return False
    raise ValueError(f"got {value!r}, expected True or False (environment: 1 or 0)")


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "fallback": _choice("error", "warn", "silent"),
    "device": _device,
    "cache_dir": lambda value: None if value is None else pathlib.Path(value),
    "emulate": _flag,
    "num_threads": _threads,
}
_DEFAULTS: dict[str, Any] = {"fallback": "warn", "device": None, "cache_dir": None, "emulate": False, "num_threads": None}
_local = threading.local()
# Names of 0.1.16 that choose an algorithm no longer there: readable, without effect.
_RETIRED = {"GRAM_THRESHOLD": 512, "ENABLE_DE_RIJK_OPT": False}
_on_emulate: list[Callable[[bool], None]] = []


def _apply(name: str, value: Any) -> None:
    if name == "num_threads":
        _native.set_threads(value or 0)
    elif name == "cache_dir":
        _native.set_cache_dir(value)
    elif name == "emulate":
        for notify in _on_emulate:
            notify(value)


def _checked(name: str, value: Any) -> Any:
    if name not in _CHECKS:
        raise ValueError(f"config: {name}: unknown setting, expected one of {', '.join(_CHECKS)}")
    try:
        return _CHECKS[name](value)
    except ValueError as error:
        raise ValueError(f"config: {name}: {error}") from None


_values = {name: _checked(name, os.environ.get(f"METALCORE_{name.upper()}") or default) for name, default in _DEFAULTS.items()}


class _Config(types.ModuleType):
    """The module itself: attributes are checked when set."""

    def __getattr__(self, name: str) -> Any:
        if name in _DEFAULTS:
            value = getattr(_local, "values", {}).get(name, _values[name])
            return pathlib.Path(_native.cache_dir()) if name == "cache_dir" and value is None else value
        if name == "ENABLE_CPU_FALLBACK":
            return self.fallback != "error"
        if name in _RETIRED:
            return _RETIRED[name]
        raise AttributeError(f"metalcore.config has no setting {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DEFAULTS:
            _values[name] = _checked(name, value)
            _apply(name, _values[name])
        elif name == "ENABLE_CPU_FALLBACK":
            self.fallback = "warn" if value else "error"
        elif name in _RETIRED:
            warnings.warn(f"metalcore.config.{name} has no effect any more", DeprecationWarning, stacklevel=2)
        elif name.startswith("__"):
            super().__setattr__(name, value)
        else:
            raise ValueError(f"config: {name}: unknown setting, expected one of {', '.join(_CHECKS)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *_DEFAULTS]


@contextlib.contextmanager
def using(**values: Any) -> Iterator[None]:
    """Sets values for a block, in this thread; what native code keeps (threads, cache_dir, emulate) for the process."""
    checked = {name: _checked(name, value) for name, value in values.items()}
    before = dict(getattr(_local, "values", {}))
    native_before = {name: before.get(name, _values[name]) for name in checked}
    _local.values = {**before, **checked}
    try:
        for name, value in checked.items():
            _apply(name, value)
        yield
    finally:
        _local.values = before
        for name, value in native_before.items():
            _apply(name, value)


sys.modules[__name__].__class__ = _Config
for _name in ("num_threads", "cache_dir"):
    _apply(_name, _values[_name])
del _name
