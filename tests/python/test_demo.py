"""The training demo: the two curves agree, a wrong optimiser is caught, the corpus is always the same."""

from __future__ import annotations

import json
from pathlib import Path

import metalcore
import pytest
import torch
from metalcore.bench import markdown
from metalcore.demo import cli, corpus, main, report

STEPS = ["--device", "cpu", "--steps", "4"]


def test_curves_agree_and_are_recorded(tmp_path, capsys):
    assert main([*STEPS, "--json", str(tmp_path / "runs.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "loss curves agree" in out
    record = json.loads((tmp_path / "runs.jsonl").read_text())
    assert len(record["runs"]["torch"]["losses"]) == len(record["runs"]["metalcore"]["losses"]) == 4
    assert record["runs"]["metalcore"]["state_bytes"] >= 8 * record["parameters"]
    assert "### Training demo" in markdown.document([record])


@pytest.mark.parametrize("fault", [{"lr": 1e-3}, {"eps": 1e-3}])
def test_a_wrong_optimiser_is_caught(tmp_path, monkeypatch, capsys, fault):
    class Wrong(metalcore.MetalAdamW):
        def __init__(self, params, **options):
            super().__init__(params, **{**options, **fault})

    monkeypatch.setattr(metalcore, "MetalAdamW", Wrong)
    assert main([*STEPS, "--json", str(tmp_path / "runs.jsonl")]) == 1
    assert "DISAGREE" in capsys.readouterr().out


def test_a_wrong_norm_is_caught(tmp_path, monkeypatch):
    class Wrong(torch.nn.RMSNorm):
        def forward(self, x):
            return super().forward(x) + 0.02

    monkeypatch.setattr(metalcore, "MetalRMSNorm", Wrong)
    assert main([*STEPS, "--json", str(tmp_path / "runs.jsonl")]) == 1


def test_bad_flags_exit_with_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--steps", "0"])
    assert stopped.value.code == 2


def test_the_corpus_is_deterministic_and_prefers_documents(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "b.md").write_text("b" * 20_000)
    (tmp_path / "a.md").write_text("a" * 20_000)
    (tmp_path / "docs" / "c.md").write_text("c" * 20_000)
    (tmp_path / "benchmarks.md").write_text("left out, generated")
    text = corpus.read(tmp_path, Path(cli.__file__).parent)
    assert text.sources == ("a.md", "b.md", "docs/c.md")
    assert text.sha256 == corpus.read(tmp_path, Path(cli.__file__).parent).sha256
    batches = [text.batch(2, 16, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][0][:, 1:], batches[0][1][:, :-1])


def test_without_documents_the_docstrings_are_read(tmp_path):
    text = corpus.read(tmp_path, Path(cli.__file__).resolve().parents[1])
    assert len(text.tokens) > 5000
    assert all(source.endswith(".py") for source in text.sources)


def test_the_chart_marks_where_curves_meet_and_part():
    lines = report.chart([3.0, 2.0, 1.0], [3.0, 2.0, 2.5])
    assert sum(line.count("*") for line in lines[:-1]) == 2
    assert sum(line.count("x") for line in lines[:-1]) == 1
