"""The extension module, written in Rust (crates/metalcore-python). Private: its names change without notice."""

from pathlib import Path
from typing import Any, Callable, Optional, Union

from torch import Tensor

class MetalDevice:
    """Operators for tensors as Python objects: mps, and cpu under emulation."""

    def __new__(cls, compile_shader: Callable[[str], Any], place: str) -> MetalDevice: ...
    def call(self, name: str, args: tuple[Any, ...]) -> Union[Tensor, tuple[Tensor, ...]]: ...

class ShaderLibrary:
    """What compile_shader returns: kernels are attributes."""

    def __getattr__(self, name: str) -> ShaderKernel: ...
    def __dir__(self) -> list[str]: ...

class ShaderKernel:
    """A kernel of a ShaderLibrary."""

    @property
    def max_threads_per_threadgroup(self) -> int: ...
    @property
    def thread_execution_width(self) -> int: ...
    def __call__(
        self,
        *args: Any,
        threads: Optional[int] = None,
        group_size: Optional[int] = None,
        arg_casts: Optional[dict[int, str]] = None,
    ) -> None: ...

class AdamWGroup:
    """A parameter group as it was when its state was last looked at."""

    @staticmethod
    def of(
        params: list[Tensor],
        states: list[dict[str, Tensor]],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        steps: Tensor,
        step_views: list[Tensor],
        state: dict[Tensor, Any],
    ) -> Optional[AdamWGroup]: ...
    def prepare(self, params: list[Tensor], state: dict[Tensor, Any]) -> Optional[AdamWStep]: ...

class AdamWStep:
    """A step of an AdamWGroup, looked at and ready."""

    def run(self, scalar_tensors: list[Optional[Tensor]], scalars: dict[str, Any]) -> None: ...

def load(library_dir: Union[str, Path], some_tensor: Tensor) -> None: ...
def operators() -> list[str]: ...
def set_threads(count: int) -> None: ...
def set_cache_dir(path: Union[str, Path, None] = None) -> None: ...
def cache_dir() -> Path: ...
def cuda_available() -> bool: ...
def metal_texts() -> list[tuple[str, str]]: ...
def compile_shader(source: str) -> ShaderLibrary: ...
def adamw_(
    lists: list[list[Tensor]],
    steps: Tensor,
    lr: Optional[Tensor],
    grad_scale: Optional[Tensor],
    found_inf: Optional[Tensor],
    scalars: dict[str, Any],
    metal: Optional[MetalDevice] = None,
) -> None: ...
