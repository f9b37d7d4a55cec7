"""What the benchmark measures: accuracy gates that catch wrong results, and the timing of calls."""

from __future__ import annotations

import math
import time
import types

import pytest
import torch
from metalcore.bench import accuracy, rows, runner, table, timing
from metalcore.bench.machine import Profile
from metalcore.bench.workloads import adamw, rms_norm
from metalcore.bench.workloads.adamw_reference import gates as adamw_gates

CPU = torch.device("cpu")


def context():
    """A CPU context with made-up rates."""
    profile = Profile({}, copy_bytes_per_s=1e10, gemm_flops_per_s={"fp32": 1e11}, launch_floor_s=1e-6, cache_bytes=32e6)
    return rows.Context(CPU, profile, frozenset({"torch"}))


# --- accuracy -------------------------------------------------------------------------------------


def gates_of(A, transform=lambda Q, R: (Q, R)):
    return {gate.name: gate for gate in accuracy.qr_gates(A, *transform(*torch.linalg.qr(A)))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 40, 16), (2, 16, 40), (100, 64)])
def test_qr_of_lapack_passes_every_gate(shape, dtype):
    torch.manual_seed(0)
    assert all(gate.passed for gate in gates_of(torch.randn(shape, dtype=dtype)).values())


def test_a_perturbed_q_fails_orthogonality():
    torch.manual_seed(0)
    gates = gates_of(torch.randn(5, 16, 16), lambda Q, R: (Q * (1 + 1e-4), R / (1 + 1e-4)))
    assert not gates["orthogonality"].passed
    assert gates["reconstruction"].passed


def test_one_bad_item_of_a_batch_fails():
    torch.manual_seed(0)

    def spoil(Q, R):
        R = R.clone()
        R[-1, 0, -1] += 0.01
        return Q, R

    assert not gates_of(torch.randn(200, 16, 16), spoil)["reconstruction"].passed


def test_an_r_that_is_not_exactly_triangular_fails():
    torch.manual_seed(0)
    gates = gates_of(torch.randn(16, 16), lambda Q, R: (Q, R + 1e-12))
    assert not gates["triangle"].passed


def test_a_nan_fails_and_is_no_number_in_the_record():
    torch.manual_seed(0)
    gates = gates_of(torch.randn(2, 8, 8), lambda Q, R: (Q * float("nan"), R))
    assert not gates["orthogonality"].passed
    assert accuracy.worst_share(gates.values()) == math.inf
    assert runner.finite(accuracy.worst_share(gates.values())) is None


def round_to_tf32(x):
    """x with 10 bits after the leading one, as tensor cores read it."""
    bits = x.view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def test_a_tf32_product_passes_the_first_gate_of_a_large_matrix_and_fails_the_second():
    torch.manual_seed(0)
    A = torch.randn(4096, 64)
    gates = {gate.name: gate for gate in accuracy.qr_gates(A, *torch.linalg.qr(round_to_tf32(A)))}
    assert gates["reconstruction"].passed
    assert not gates["reconstruction sqrt"].passed
    assert all(gate.passed for gate in gates_of(A).values())


def test_a_wrong_gradient_of_rms_norm_fails():
    case = next(c for c in rms_norm.cases(context()) if c.op == "rms_norm fwd+bwd" and c.shape == rows.times(32, 4096))
    row = case.build()
    outputs, grads = row.ours(0)
    assert accuracy.worst_share(row.check(0, (outputs, grads))) <= 1
    assert accuracy.worst_share(row.check(0, (outputs, (grads[0] * (1 + 1e-4), grads[1])))) > 1
    assert accuracy.worst_share(row.check(0, (outputs, (grads[0], grads[1].roll(1))))) > 1
    spoiled = outputs[0].detach().clone()
    spoiled[-1, -1] = float("nan")
    assert accuracy.worst_share(row.check(0, ((spoiled,), grads))) == math.inf


def test_a_wrong_weight_decay_fails():
    tensors = adamw.make_parameters(CPU, (1000, 7), torch.float32, 0)
    optimizer = torch.optim.AdamW(tensors, lr=adamw.LR, fused=True)
    optimizer.step()
    assert accuracy.worst_share(adamw_gates(optimizer, tensors)) <= 1
    step = optimizer.step

    def without_decay():
        optimizer.param_groups[0]["weight_decay"] = 0.0
        step()
        optimizer.param_groups[0]["weight_decay"] = 0.01

    optimizer.step = without_decay
    assert accuracy.worst_share(adamw_gates(optimizer, tensors)) > 1


# --- timing ---------------------------------------------------------------------------------------


def test_calls_take_turns_and_each_gets_the_next_copy():
    seen = []
    calls = {name: (lambda copy, name=name: seen.append((name, copy))) for name in "AB"}
    timing.Interleaved(timing.WallTimer(CPU), calls, copies=3).measure(timing.Plan(runs=4, most_runs=4, settle_s=0.0))
    names = "".join(name for name, _ in seen)
    assert names.startswith("ABBAABBA")
    assert names.count("A") == names.count("B") == 8
    assert [place for _, place in seen] == [i % 3 for i in range(len(seen))]


def test_slow_calls_run_five_times_and_others_thirty_or_more():
    assert timing.FULL.runs_for([0.6, 0.1]) == 5
    assert timing.FULL.runs_for([0.4, 0.4]) == 30
    assert timing.FULL.runs_for([1e-3, 1e-3]) == 100
    assert timing.QUICK.runs_for([1e-3]) == 30


def test_the_output_of_the_last_timed_call_is_what_is_checked():
    timer = timing.WallTimer(CPU)
    calls = {"ours": lambda copy: ("ours", copy), "peer": lambda copy: ("peer", copy)}
    made = timing.Interleaved(timer, calls, copies=2)
    made.measure(timing.LITE)
    assert timer.kept == ("ours", made.first_copy)


def test_events_hold_the_call_and_not_the_lead_in(monkeypatch):
    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def elapsed_time(self, later):
            return (later.at - self.at) * 1e3

    def work(seconds):
        now[0] += seconds

    fake = types.SimpleNamespace(Event=Event, synchronize=lambda: None)
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timer = timing.EventTimer(torch.device("cuda"), lambda: work(5.0))
    assert timer.round([lambda: work(1.0), lambda: work(2.0)]) == [(1.0, 1.0), (2.0, 2.0)]


def test_a_peer_that_cannot_run_is_left_out_with_its_reason():
    def broken(_):
        raise ValueError("not for this shape")

    row = rows.Row(lambda _: 0, {"good": rows.Peer(lambda _: 0), "bad": rows.Peer(broken)}, lambda i, out: [])
    usable, skipped = runner.usable_peers(row)
    assert list(usable) == ["good"]
    assert "not for this shape" in skipped["bad"]


def test_the_best_peer_is_the_one_closest_to_us_by_its_own_clock():
    stats = timing.Stats(1e-3, 1e-3, 1e-3, 1e-6, 30)
    result = {
        "peers": {"torch": {"ratio": 8.0, "noisy": False}, "jax": {"ratio": 0.9, "noisy": False}},
        "ours": {"ms": 1.0}, "other_cpu_share": 0.0, "floor_ms": 0.5, "error": 0.1,
    }  # fmt: skip
    judged = runner.judge(result, stats, context())
    assert (judged["best_peer"], judged["ratio"], judged["roofline"]) == ("jax", 0.9, 0.5)
    assert judged["tags"] == ["loss"]


def test_a_row_timed_while_others_worked_makes_no_claim():
    stats = timing.Stats(1e-3, 1e-3, 1e-3, 1e-6, 30)
    result = {
        "peers": {"torch": {"ratio": 30.0, "noisy": False}},
        "ours": {"ms": 1.0}, "other_cpu_share": 0.4, "floor_ms": 0.5, "error": 0.1,
    }  # fmt: skip
    judged = runner.judge(result, stats, context())
    assert judged["tags"] == ["busy"]
    assert not table.claimable(judged)
    assert "0 at or above the best peer, 0 below it, 1 launch-bound or disturbed" in table.summary([judged])
