"""ComfyUI: the functions that its models call, by the same overrides."""

import logging

from . import overrides

_log = logging.getLogger("metalcore")
_HOLDER = "patch_comfy"


def patch_comfy(activations: bool = True, sdpa: bool = False, verbose: bool = False) -> None:
    """Replaces ``F.silu`` and ``F.gelu`` (not on mps), ``torch.linalg.solve``, and with ``sdpa=True``
    ``F.scaled_dot_product_attention``, as far as metalcore has them, by the rules of :func:`enable_pytorch_overrides`.

    The two may be combined and undone in any order. A second call adds what is new and changes nothing else.
    """
    wanted = [*(("silu", "gelu") if activations else ()), "solve", *(("scaled_dot_product_attention",) if sdpa else ())]
    there = [op for op in wanted if overrides.hold(op, _HOLDER)]
    _log.log(logging.INFO if verbose else logging.DEBUG, "patch_comfy: %s", ", ".join(there) or "nothing")


def unpatch_comfy(verbose: bool = False) -> None:
    """Undoes :func:`patch_comfy`; what :func:`enable_pytorch_overrides` has replaced stays."""
    for op in overrides.OVERRIDES:
        overrides.release(op, _HOLDER)
    _log.log(logging.INFO if verbose else logging.DEBUG, "unpatch_comfy")


def is_patched() -> bool:
    """Whether anything is replaced for ComfyUI."""
    return any(overrides.holds(op, _HOLDER) for op in overrides.OVERRIDES)
