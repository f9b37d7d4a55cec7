"""The text that the demo learns: the project's documents as bytes, always in the same order."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

import torch
from torch import Tensor

ENOUGH_BYTES = 32_000
"""With fewer bytes of documents the docstrings of the package are added."""

GENERATED = ("benchmarks.md",)
"""Documents that hold results of earlier runs and would change from run to run."""


@dataclass(frozen=True)
class Corpus:
    """Bytes as tokens, and where they come from."""

    tokens: Tensor
    sources: tuple[str, ...]
    sha256: str

    def batch(self, size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`size` random windows of `length` tokens, and the same windows one token later."""
        starts = torch.randint(len(self.tokens) - length - 1, (size, 1), generator=generator)
        windows = self.tokens[starts + torch.arange(length + 1)].long()
        return windows[:, :-1], windows[:, 1:]


def read(root: Optional[Path], package: Path) -> Corpus:
    """Documents of the checkout `root` (*.md there and below docs), else the README of the installed
    package; with the docstrings of `package` where that is too little."""
    texts = documents(root) if root else installed_readme()
    if sum(len(text) for text in texts.values()) < ENOUGH_BYTES:
        texts.update(docstrings(package))
    data = b"\n".join(texts[name] for name in texts)
    return Corpus(
        tokens=torch.frombuffer(bytearray(data), dtype=torch.uint8),
        sources=tuple(texts),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def documents(root: Path) -> dict[str, bytes]:
    """Markdown files of a checkout by relative name, sorted."""
    paths = sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.name not in GENERATED}


def installed_readme() -> dict[str, bytes]:
    """The long description that the installed package carries."""
    try:
        metadata = importlib.metadata.distribution("metalcore").read_text("METADATA") or ""
    except importlib.metadata.PackageNotFoundError:
        return {}
    text = metadata.partition("\n\n")[2]
    return {"README": text.encode()} if text else {}


def docstrings(package: Path) -> dict[str, bytes]:
    """Docstrings of every module, class and function of a package, sorted by file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        text = "\n\n".join(docstrings_of(path))
        if text:
            found[path.relative_to(package.parent).as_posix()] = text.encode()
    return found


def docstrings_of(path: Path) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, kinds):
            text = ast.get_docstring(node)
            if text:
                yield text
