"""What the documents show runs as it stands: the Python blocks of README.md and usage.md, and examples in docstrings."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import metalcore
import metalcore_backend
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "usage.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_blocks_of_a_document_run_one_after_the_other(name, tmp_path, monkeypatch):
    text = (ROOT / name).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    found = list(BLOCK.finditer(text))
    for block in found:
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], name, "exec"), names)
    assert found, "no block of Python"


def documented() -> list[doctest.DocTest]:
    """Every example in a docstring of a public name."""
    finder = doctest.DocTestFinder(recurse=False)
    globs = {"metalcore": metalcore, "mc": metalcore_backend, "torch": torch}
    public = [(f"{m.__name__}.{name}", getattr(m, name)) for m in (metalcore, metalcore_backend) for name in m.__all__]
    tests = [test for name, value in public for test in finder.find(value, name, globs=dict(globs))]
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("test", documented(), ids=lambda test: test.name)
def test_the_examples_of_a_docstring_run(test):
    assert doctest.DocTestRunner().run(test).failed == 0


def test_every_public_name_is_in_the_guide():
    text = (ROOT / "usage.md").read_text(encoding="utf-8")
    public = {name for name in metalcore.__all__ if not inspect.ismodule(getattr(metalcore, name))}
    missing = {name for name in public if not re.search(rf"\b{name}\b", text)}
    assert not missing
