"""Errors of native operators, as the Python classes that the contract names."""

import re

import torch

_CLASSES = {c.__name__: c for c in (ValueError, TypeError, IndexError, NotImplementedError, RuntimeError)}
_CLASSES["LinAlgError"] = torch.linalg.LinAlgError
_TAG = re.compile(rf"\[({'|'.join(_CLASSES)})\] ([^\n]*)")


def translate(error: Exception) -> Exception:
    """The exception that an operator meant: its class is in brackets at the head of the text."""
    found = _TAG.search(str(error))
    return _CLASSES[found[1]](found[2]) if found else error


def wrong(op: str, argument: str, got: object, expected: str) -> str:
    """Text of an error: ``op: argument: got ..., expected ...``."""
    return f"{op}: {argument}: got {got}, expected {expected}"
