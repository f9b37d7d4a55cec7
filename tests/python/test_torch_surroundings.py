"""What surrounds a call in a program: threads, forks, the interpreter lock, pickling, tensor subclasses, streams and graphs."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import metalcore
import pytest
import torch
from support import EMULATED, normal, same_bits

SINGLE = (torch.float32, torch.float64)


def everything(device, dtype, seed):
    """Results of every function, forward and backward, and of an optimiser's step, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)  # noqa: E731
    found = []
    A = make(20, 17, 12).requires_grad_()
    Q, R = metalcore.qr(A)
    (Q.sum() + R.sum()).backward()
    found += [Q, R, A.grad, *metalcore.qr(make(90, 70)), *metalcore.qr(make(3, 40, 60), "complete")]
    x, residual, weight = make(301, 130).requires_grad_(), make(301, 130).requires_grad_(), make(130).requires_grad_()
    y, total = metalcore.fused_add_rmsnorm(metalcore.rms_norm(x, 130, weight), residual, weight)
    torch.autograd.backward((y, total), (make(301, 130), make(301, 130)))
    found += [y, total, x.grad, residual.grad, weight.grad]
    params = [torch.nn.Parameter(make(*shape)) for shape in ((5,), (4097,), (300, 70))]
    optimizer = metalcore.MetalAdamW(params)
    for p in params:
        p.grad = make(*p.shape)
    optimizer.step()
    return [t.detach() for t in (*found, *params)]


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.dtypes(*SINGLE)
def test_several_threads_at_once_get_the_results_of_one(device, dtype):
    seeds = range(3 if EMULATED else 12)
    alone = [everything(device, dtype, seed) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: everything(device, dtype, seed), seeds))
    for one, other in zip(alone, together):
        assert all(same_bits(a, b) for a, b in zip(one, other))


@pytest.mark.native
@pytest.mark.dtypes(*SINGLE)
def test_the_number_of_threads_does_not_change_a_bit(device, dtype):
    expected = everything(device, dtype, 5)
    for threads in (1, 2, 3, 7):
        with metalcore.config.using(num_threads=threads):
            assert all(same_bits(a, b) for a, b in zip(everything(device, dtype, 5), expected)), f"{threads} threads"


@pytest.mark.host
@pytest.mark.dtypes(torch.float32)
def test_other_python_threads_run_during_a_call(device, dtype):
    size = 200 if EMULATED else 1200
    A = normal(size, size, device=device, dtype=dtype)
    metalcore.qr(A[:2, :2])
    done = threading.Event()

    def work():
        metalcore.qr(A)
        done.set()

    worker = threading.Thread(target=work)
    ticks = 0
    worker.start()
    while not done.is_set():
        time.sleep(1e-3)
        ticks += 1
    worker.join()
    # With the interpreter held, this thread would wake once, after the call.
    assert ticks > 2


def run_python(text, timeout=60, **environment):
    """Output of a fresh interpreter."""
    env = {**os.environ, **environment}
    result = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=timeout, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout


THREADS = """
import os, torch
torch.set_num_threads({torch_threads})
count = lambda: len(os.listdir("/proc/self/task"))
torch.randn(300, 300) @ torch.randn(300, 300)
before = count()
import metalcore
imported = count()
metalcore.config.num_threads = {threads}
metalcore.qr(torch.randn(5000, 8, 8))
metalcore.rms_norm(torch.randn(5000, 1000), 1000)
print(imported - before, count() - imported)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize("torch_threads, threads", [(1, None), (1, 1)], ids=["as torch", "as set"])
def test_import_starts_no_thread_and_calls_start_no_more_than_allowed(torch_threads, threads):
    text = THREADS.format(torch_threads=torch_threads, threads=threads)
    assert run_python(text, METALCORE_EMULATE="0").split() == ["0", "0"]


FORK = """
import os, torch, metalcore
torch.set_num_threads(2)
A, x = torch.randn(2000, 8, 8), torch.randn(3000, 500)
def results():
    p = torch.nn.Parameter(torch.ones(100000))
    p.grad = torch.ones(100000)
    metalcore.MetalAdamW([p]).step()
    return [*metalcore.qr(A), metalcore.rms_norm(x, 500), p.detach()]
before = results()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    metalcore.config.num_threads = 2
    same = all(torch.equal(a, b) for a, b in zip(results(), before))
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_computes_too():
    assert run_python(FORK, METALCORE_EMULATE="0").split() == ["0"]


# --- pickling, subclasses -------------------------------------------------------------------------


def test_modules_are_pickled_copied_and_saved(device, dtype):
    x = normal(3, 12, device=device, dtype=dtype)
    modules = [
        (metalcore.MetalRMSNorm(12, eps=1e-4), lambda m: m(x)),
        (metalcore.MetalRMSNorm((3, 12), elementwise_affine=False), lambda m: m(x)),
        (metalcore.FusedAddRMSNorm(12, eps=1e-4), lambda m: m(x, 2 * x)[0]),
    ]
    for module, call in modules:
        module = module.to(device, dtype)
        for p in module.parameters():
            torch.nn.init.normal_(p)
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), torch.load(file, weights_only=False)):
            assert type(other) is type(module) and repr(other) == repr(module)
            assert same_bits(call(other), call(module))


def test_results_are_pickled_as_named_tuples(device):
    result = metalcore.qr(normal(3, 2, device=device, dtype=torch.float32))
    other = pickle.loads(pickle.dumps(result))
    assert isinstance(other, metalcore.QR) and same_bits(other.R, result.R)


def test_parameters_are_like_plain_tensors(device, dtype):
    A = normal(4, 3, device=device, dtype=dtype)
    with torch.no_grad():
        for got, want in zip(metalcore.qr(torch.nn.Parameter(A)), metalcore.qr(A)):
            assert type(got) is torch.Tensor and same_bits(got, want)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_not_built(device, layout):
    rows = [torch.ones(2, 4, device=device), torch.ones(3, 4, device=device)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    for call in (
        lambda: metalcore.qr(nested),
        lambda: metalcore.rms_norm(nested, 4),
        lambda: metalcore.fused_add_rmsnorm(nested, nested, None),
    ):
        with pytest.raises(NotImplementedError):
            call()


DISTRIBUTED = """
import torch, metalcore
from torch.distributed.tensor import DTensor, Replicate, init_device_mesh
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
A = DTensor.from_local(torch.ones(4, 4), mesh, [Replicate()])
for call in (lambda: metalcore.qr(A), lambda: metalcore.rms_norm(A, 4), lambda: metalcore.fused_add_rmsnorm(A, A, None)):
    try:
        call()
        print("returned")
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without torch.distributed")
def test_distributed_tensors_are_not_built():
    assert run_python(DISTRIBUTED).split() == ["NotImplementedError"] * 3


# --- devices --------------------------------------------------------------------------------------


def test_tensors_of_two_devices_are_refused(device):
    x = torch.ones(2, 4, device=device)
    other = torch.ones(2, 4, device="meta" if device.type == "cpu" else "cpu")
    for call in (
        lambda: metalcore.rms_norm(x, 4, other[0]),
        lambda: metalcore.fused_add_rmsnorm(x, other, None),
        lambda: metalcore.fused_add_rmsnorm(x, x, other[0]),
    ):
        with pytest.raises(ValueError, match="got device .+, expected"):
            call()


@pytest.mark.cuda
@pytest.mark.dtypes(*SINGLE)
def test_work_goes_to_the_current_stream(device, dtype):
    A, x = normal(500, 16, 16, device=device, dtype=dtype), normal(2000, 1024, device=device, dtype=dtype)
    expected = [*metalcore.qr(A * 2), metalcore.rms_norm(x * 2, 1024)]
    stream = torch.cuda.Stream(device)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # The inputs are ready on this stream alone, and late.
        torch.cuda._sleep(50_000_000)
        found = [*metalcore.qr(A * 2), metalcore.rms_norm(x * 2, 1024)]
    stream.synchronize()
    assert all(same_bits(got, want) for got, want in zip(found, expected))


@pytest.mark.cuda
@pytest.mark.dtypes(*SINGLE)
def test_calls_are_captured_in_a_graph_and_replayed(device, dtype):
    A, x = normal(50, 16, 16, device=device, dtype=dtype), normal(200, 1024, device=device, dtype=dtype)
    w = normal(1024, device=device, dtype=dtype)
    params = [torch.nn.Parameter(normal(n, device=device, dtype=dtype)) for n in (5, 4097, 70_000)]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizers = [metalcore.MetalAdamW(group, lr=torch.tensor(1e-3, device=device)) for group in (params, twins)]
    for p, q in zip(params, twins):
        p.grad = normal(*p.shape, device=device, dtype=dtype)
        q.grad = p.grad.clone()
    call = lambda: (*metalcore.qr(A), metalcore.rms_norm(x, 1024, w), *metalcore.fused_add_rmsnorm(x, x, w))  # noqa: E731
    call()
    for optimizer in optimizers:
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
        optimizers[0].step()
    for step in range(3):
        A.copy_(normal(50, 16, 16, device=device, dtype=dtype))
        x.copy_(normal(200, 1024, device=device, dtype=dtype))
        for p, q in zip(params, twins):
            p.grad.copy_(normal(*p.shape, device=device, dtype=dtype))
            q.grad.copy_(p.grad)
        graph.replay()
        optimizers[1].step()
        assert all(same_bits(got, want) for got, want in zip(outputs, call()))
        assert all(same_bits(p, q) for p, q in zip(params, twins))
        assert float(optimizers[0].state[params[0]]["step"]) == step + 2
