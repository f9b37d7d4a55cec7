"""The benchmark's command: flags and exit status, which rows run, records, comparison, Markdown, plot."""

from __future__ import annotations

import copy
import functools
import json

import metalcore
import pytest
import torch
from metalcore.bench import cli, history, main, markdown, plot, rows, runner, table, timing, workloads
from metalcore.bench.machine import Profile
from metalcore.bench.workloads import adamw, qr, rms_norm

CPU = torch.device("cpu")
LARGE, SMALL, SINGLE = rows.times(500, 16, 16), rows.times(50, 8, 8), rows.times(16, 16)
QUIET_PROFILE = Profile(
    facts={}, copy_bytes_per_s=1e10, gemm_flops_per_s={"fp32": 1e11, "fp64": 1e11}, launch_floor_s=1e-6, cache_bytes=32e6
)


def context(**changes):
    """A CPU context without measured rates."""
    given = {"device": CPU, "profile": QUIET_PROFILE, "peers": frozenset({"torch"}), **changes}
    return rows.Context(**given)


def row_fixture(**changes):
    """A row as a run records it."""
    row = {
        "selector": "qr",
        "op": "qr",
        "shape": LARGE,
        "dtype": "fp32",
        "quick": True,
        "ours": {"ms": 2.0, "p10_ms": 1.9, "p90_ms": 2.1, "runs": 30, "host_us": 9.0, "noisy": False},
        "peers": {
            "torch": {"ms": 16.0, "p10_ms": 15.0, "p90_ms": 17.0, "runs": 30, "host_us": 12.0, "noisy": False,
                      "clock": "device", "ours_ms": 2.0, "ratio": 8.0},
        },
        "skipped_peers": {},
        "copies": 1,
        "bytes": 1.5e6,
        "flops": 5.5e6,
        "floor_ms": 0.5,
        "errors": {"reconstruction": {"ratio": 0.5, "bar": 5.0}, "orthogonality": {"ratio": 0.7, "bar": 7.0}},
        "error": 0.1,
        "other_cpu_share": 0.0,
        "failure": None,
        "note": "",
        "best_peer": "torch",
        "ratio": 8.0,
        "roofline": 0.25,
        "tags": [],
    }  # fmt: skip
    row.update(changes)
    return row


def record_fixture(*found, when="2026-01-01T00:00:00+00:00", device="cpu"):
    """A record of a run with these rows."""
    return {
        "schema": 1,
        "kind": "benchmark",
        "time": when,
        "settings": {},
        "peers": ["torch"],
        "machine": {
            "id": f"a-{device}", "device": device, "device_name": f"A {device.upper()}", "os": "Linux x86_64", "python": "3.12.0",
            "torch": "2.11.0", "metalcore": "1.0", "commit": "abc", "threads": 2, "cores": 2, "copy_gb_s": 27.0,
            "gemm_tflop_s": {"fp32": 0.3}, "launch_floor_us": 1.0, "cache_mb": 32.0, "other_cpu_share": 0.0,
        },
        "rows": list(found),
        "skipped": [],
        "host": [{"selector": "qr", "op": "qr", "shape": SINGLE, "grad": "no grad", "calls": 10000, "ours_us": 9.0,
                  "torch_us": 9.5, "difference_us": -0.5, "failure": None, "tags": []}],
    }  # fmt: skip


# --- command line ---------------------------------------------------------------------------------


def test_lite_runs_every_dtype_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # All selectors take a minute: nightly, as `benchmark.py --lite`.
    assert main(["--lite", "--device", "cpu", "--qr", "--rmsnorm", "--adamw"], folder=tmp_path / "results") == 0
    out = capsys.readouterr().out
    for text in ("qr", "rms_norm fwd+bwd", "fused_add_rmsnorm fwd", "adamw", "fp32", "fp16", "bf16", "host overhead"):
        assert text in out
    assert ("fp64" in out) != metalcore.config.emulate
    assert list(tmp_path.rglob("*")) == []


def test_json_on_standard_output_is_one_record_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "choose_selectors", lambda options: [tiny_selector()])
    monkeypatch.setattr(runner, "plan_of", lambda context: timing.LITE)
    monkeypatch.setattr(cli, "check_settings", lambda lite: None)
    assert main(["--device", "cpu", "--json", "-", "--quick"], folder=tmp_path) == 0
    out = capsys.readouterr().out.strip().splitlines()
    assert len(out) == 1
    record = json.loads(out[0])
    assert record["settings"] == {"device": "cpu", "quick": True}
    assert list(tmp_path.iterdir()) == []
    check_schema(record)


def check_schema(record):
    """Every field that the tables, benchmarks.md and the plots read."""
    fixture = record_fixture(row_fixture())
    assert set(fixture) <= set(record)
    assert set(fixture["machine"]) <= set(record["machine"])
    for row in record["rows"]:
        assert set(row_fixture()) <= set(row)
        assert set(row_fixture()["ours"]) <= set(row["ours"])
        for peer in row["peers"].values():
            assert set(row_fixture()["peers"]["torch"]) <= set(peer)
    for call in record["host"]:
        assert set(fixture["host"][0]) <= set(call)


def tiny_selector(transform=lambda result: result, name="qr"):
    """One small QR whose result is passed through `transform`."""

    def changed(case):
        row = case.build()
        return rows.Row(lambda copy: transform(row.ours(copy)), row.peers, row.check)

    def cases(context):
        for case in qr.cases(context):
            if case.shape == SINGLE:
                build = functools.partial(changed, case)
                yield rows.Case("qr", case.shape, case.dtype, case.cost, build, quick=True)

    return workloads.Selector(name, "QR", cases, qr.host_calls)


def test_an_error_over_its_bar_exits_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "choose_selectors", lambda options: [tiny_selector(lambda qr: (qr[0] + 1e-4, qr[1]))])
    assert main(["--lite", "--device", "cpu"], folder=tmp_path) == 1
    assert "ERR" in capsys.readouterr().out


def test_an_interrupted_run_keeps_the_tables_before(tmp_path, monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    selectors = [tiny_selector(), tiny_selector(interrupt, name="adamw"), tiny_selector()]
    monkeypatch.setattr(cli, "choose_selectors", lambda options: selectors)
    monkeypatch.setattr(runner, "plan_of", lambda context: timing.LITE)
    monkeypatch.setattr(cli, "check_settings", lambda lite: None)
    path = tmp_path / "interrupted.jsonl"
    assert main(["--device", "cpu", "--json", str(path)], folder=tmp_path) == 130
    [record] = [json.loads(line) for line in path.read_text().splitlines()]
    assert record["interrupted"] == "adamw" and len(record["rows"]) == 1
    assert "interrupted in --adamw" in capsys.readouterr().out


def test_an_op_that_raises_exits_with_1_and_is_named(tmp_path, monkeypatch, capsys):
    def fail(_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(cli, "choose_selectors", lambda options: [tiny_selector(fail)])
    assert main(["--lite", "--device", "cpu"], folder=tmp_path) == 1
    captured = capsys.readouterr()
    assert "no such kernel" in captured.out


@pytest.mark.parametrize(
    "flags",
    [
        ["--nonsense"],
        ["--qui"],
        ["--dtype", "fp8"],
        ["--device", "tpu"],
        ["--device", "cuda:99"],
        ["--peers", "torch,numpy"],
        ["--plot", "chart.txt"],
        ["--compare", "not-there.jsonl"],
    ],
)
def test_bad_flags_exit_with_2(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert "error" in capsys.readouterr().err


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for flag in "qr activations softmax layernorm embedding scatter rope losses rmsnorm adamw training quick lite dtype device json compare plot md peers nolongops".split():
        assert f"--{flag}" in out


def test_groups_and_no_selector_choose_their_members():
    names = lambda *flags: [s.name for s in cli.choose_selectors(cli.parser().parse_args(flags))]  # noqa: E731
    assert names() == [selector.name for selector in workloads.SELECTORS]
    assert set(names("--training")) == set(workloads.GROUPS["training"])
    assert names("--qr") == ["qr"]


# --- which rows -----------------------------------------------------------------------------------


def test_quick_keeps_the_marked_rows_and_the_cpu_leaves_out_the_large_ones():
    full = runner.select_cases(list(qr.cases(context())), context(), False)
    quick = runner.select_cases(list(qr.cases(context(quick=True))), context(quick=True), False)
    assert rows.times(4096, 4096) not in {case.shape for case in full}
    assert {case.shape for case in quick} == {rows.times(*shape) for shape in qr.QUICK}
    assert len(full) > len(quick)


def test_training_rows_are_fp32_and_bf16_unless_a_dtype_is_named():
    assert {case.dtype for case in rms_norm.cases(context())} == {torch.float32, torch.bfloat16}
    assert {case.dtype for case in rms_norm.cases(context(dtypes=(torch.float16,)))} == {torch.float16}


def test_no_long_ops_leaves_out_rows_whose_floor_is_long():
    slow = Profile({}, copy_bytes_per_s=1e6, gemm_flops_per_s={"fp32": 1e6}, launch_floor_s=1e-6, cache_bytes=1e6)
    cases = list(qr.cases(context(profile=slow)))
    assert len(runner.select_cases(cases, context(profile=slow), True)) < len(runner.select_cases(cases, context(), False))


def test_the_llama_list_has_291_tensors_of_1_1_billion_parameters():
    assert len(adamw.LLAMA.sizes) == 291
    assert 1.05e9 < adamw.LLAMA.total < 1.15e9


def test_costs_are_those_of_the_workload_table():
    m, n = 4000, 1000
    cost = qr.cost((m, n), torch.float32)
    assert cost.flops == pytest.approx(4 * m * n**2 - 4 * n**3 / 3)
    assert cost.bytes == 4 * (2 * m * n + n * n)
    assert qr.cost((7, m, n), torch.float32).flops == pytest.approx(7 * cost.flops)
    assert adamw.bytes_per_parameter(torch.float32) == 28
    assert adamw.bytes_per_parameter(torch.bfloat16) == 22
    passes = {case.op: case.cost.bytes / (4096 * 4096 * 4) for case in rms_norm.cases(context())
              if case.shape == rows.times(4096, 4096) and case.dtype == torch.float32}  # fmt: skip
    assert passes == {"rms_norm fwd": 2, "rms_norm fwd+bwd": 5, "fused_add_rmsnorm fwd": 4, "fused_add_rmsnorm fwd+bwd": 8}


def test_small_operands_rotate_through_twice_the_cache_and_large_ones_do_not():
    assert rows.copies_needed(64e6, 64e6, 60e6) == 1
    copies = rows.copies_needed(16e6, 16e6, 60e6)
    assert copies * 16e6 > 2 * 60e6


# --- records, comparison, Markdown, plot ----------------------------------------------------------


def test_compare_marks_rows_slower_by_more_than_five_percent(tmp_path):
    path = tmp_path / "runs.jsonl"
    history.append(record_fixture(row_fixture(ours={**row_fixture()["ours"], "ms": 9.0})), path)
    history.append(record_fixture(row_fixture(), row_fixture(shape=SMALL), when="2026-01-02T00:00:00+00:00"), path)
    slower, faster, other = row_fixture(), row_fixture(shape=SMALL), row_fixture(dtype="bf16")
    slower["ours"] = {**slower["ours"], "ms": 2.2}
    faster["ours"] = {**faster["ours"], "ms": 1.0}
    now = record_fixture(slower, faster, other, when="2026-01-03T00:00:00+00:00")
    history.add_comparison(now, history.load([path]))
    assert slower["last_ms"] == 2.0 and slower["slower"] and slower["change_percent"] == pytest.approx(10)
    assert not faster["slower"] and faster["change_percent"] == pytest.approx(-50)
    assert "last_ms" not in other
    assert table.compare_cells(slower) == ["2", "+10 % slower"]


def test_compare_keeps_machines_and_devices_apart():
    now = record_fixture(row_fixture(), device="cuda")
    history.add_comparison(now, [record_fixture(row_fixture(), device="cpu")])
    assert "last_ms" not in now["rows"][0]


def test_a_broken_line_is_named_and_left_out(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    history.append(record_fixture(row_fixture()), path)
    path.write_text(path.read_text() + "{broken\n")
    assert len(history.load([path])) == 1
    assert "runs.jsonl:2" in capsys.readouterr().err


def test_markdown_has_the_last_row_the_machine_and_no_metal_speed():
    old = record_fixture(row_fixture(ratio=5.0))
    new = record_fixture(row_fixture(), row_fixture(shape=SMALL, ratio=0.9, tags=["loss"]), when="2026-01-02T00:00:00+00:00")
    text = markdown.document([old, new])
    assert f"| qr | {LARGE} | fp32 | 2 | 16 | torch | 8.00{rows.TIMES} | 25 % | 0.1 | - |  |" in text
    assert f"5.00{rows.TIMES}" not in text
    assert f"| 0.90{rows.TIMES} |" in text and "loss" in text
    for part in ("A CPU", "torch 2.11.0", "commit abc", "copy 27 GB/s"):
        assert part in text
    assert "checked statically and by emulation, not on a Mac, so no Metal speed is given" in text


def test_markdown_with_an_apple_run_gives_its_speed():
    text = markdown.document([record_fixture(row_fixture(), device="mps")])
    assert "A MPS" in text and "not on a Mac" not in text


def test_the_plot_leaves_out_launch_bound_rows_and_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    found = [row_fixture(), row_fixture(shape="tiny", tags=["launch"]), row_fixture(shape="lost", ratio=0.5, tags=["loss"])]
    assert [row["shape"] for row in plot.bars_of(found)] == [LARGE, "lost"]
    for name in ("chart.png", "chart.svg"):
        plot.draw([record_fixture(*copy.deepcopy(found))], tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_the_time_of_one_matrix_is_drawn_over_the_batch(tmp_path):
    pytest.importorskip("matplotlib")
    row = row_fixture(op="qr", shape="1\u00d716\u00d716", peers={"torch": {"ms": 3.0}})
    scaled = [
        {**row, "shape": f"{b}\u00d716\u00d716", "ours": {**row["ours"], "ms": 0.001 * b}} for b in workloads.scaling.BATCHES
    ]
    lines = plot.lines_of([*scaled, {**row, "shape": "1000\u00d732\u00d732"}, {**row, "op": "rms_norm"}])
    assert list(lines) == ["qr"] and [round(ours, 9) for _, ours, _ in lines["qr"]] == [1.0] * len(scaled)
    assert not plot.draw_scaling([record_fixture(*scaled[1:])], tmp_path / "none.png")
    assert plot.draw_scaling([record_fixture(*scaled)], tmp_path / "lines.png") and (tmp_path / "lines.png").stat().st_size > 1000


def test_the_machine_file_has_no_host_name_or_path():
    import platform

    from metalcore.bench import machine

    text = json.dumps(machine.describe(CPU))
    assert "/" not in machine.describe(CPU)["id"]
    if len(platform.node()) > 3:
        assert platform.node() not in text
    assert metalcore.__version__ in text
