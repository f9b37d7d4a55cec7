"""The operators inside torch: opcheck, fakes, torch.compile, vmap. Threads, processes, pickling, subclasses:
test_torch_surroundings.py.
"""

from __future__ import annotations

import metalcore
import pytest
import torch
from support import assert_qr, normal, same_bits
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

ops = torch.ops.metalcore
SINGLE = (torch.float32, torch.float64)


def _like(x, *shape):
    return normal(*shape, device=x.device, dtype=x.dtype)


def _rstd(x, eps=1e-6):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.to(wide).square().mean(-1) + eps).rsqrt()


def _eigh(x):
    for A in (_like(x, 2, 3, 3), _like(x, 4, 4)):
        yield (A + A.mT,), {}
        yield (A + A.mT, True, 2), {}


def _qr(x):
    for mode in (0, 1, 2):
        yield (_like(x, 2, 5, 3), mode), {}
    yield (_like(x, 3, 5),), {}
    yield (_like(x, 2, 3, 4).mT, 0), {}
    yield (_like(x, 0, 3, 3), 0), {}


def _svd(*more):
    def samples(x):
        for shape in ((2, 5, 3), (3, 5), (4, 4), (0, 3, 3)):
            yield (_like(x, *shape), True, *more), {}
        yield (_like(x, 2, 3, 4).mT, False, *more), {}

    return samples


def _rms_norm_fwd(x):
    yield (_like(x, 3, 8), _like(x, 8), 1, 1e-6), {}
    yield (_like(x, 2, 3, 4), None, 2, 1e-6), {}
    yield (_like(x, 8, 3).mT, _like(x, 16)[::2], 1, 1e-6), {}


def _rms_norm_bwd(x):
    for weight in (_like(x, 8), None):
        h = _like(x, 3, 8)
        yield (_like(x, 3, 8), h, weight, _rstd(h), 1), {}


def _add_rms_norm_fwd(x):
    for weight in (_like(x, 8), None):
        yield (_like(x, 3, 8), _like(x, 3, 8), weight, 1, 1e-6), {}


def _add_rms_norm_bwd(x):
    for weight in (_like(x, 8), None):
        h = _like(x, 3, 8)
        yield (_like(x, 3, 8), _like(x, 3, 8), h, weight, _rstd(h), 1), {}


def _activation(name):
    """Samples of one of the operators of an activation, such as bias_gelu_bwd."""

    def samples(x):
        for shape in ((3, 8), (2, 3, 5)):
            second = {"bias": shape[-1:], "geglu": shape, "swiglu": shape}.get(name.split("_")[0])
            tensors = [_like(x, *s) for s in (shape, second) if s is not None]
            gradient = [_like(x, *shape)] if name.endswith("_bwd") else []
            for flags in ((False,), (True,)) if "ge" in name else ((),):
                yield (*gradient, *tensors, *flags), {}
        tensors[0] = _like(x, 2, 5, 3).mT
        yield (*gradient, *tensors, *flags), {}

    return samples


def _cholesky(x):
    for shape in ((2, 4, 4), (3, 3), (0, 3, 3)):
        G = _like(x, *shape)
        yield (G @ G.mT + torch.eye(shape[-1], dtype=x.dtype, device=x.device), len(shape) == 2), {}


def _trsm(x):
    triangle = _like(x, 2, 4, 4) / 4 + torch.eye(4, dtype=x.dtype, device=x.device)
    for upper, matrix, unit in ((False, 0, False), (True, 1, True), (False, 2, False), (True, 2, False)):
        yield (triangle, _like(x, 2, 4, 3), upper, matrix, unit), {}
    yield (triangle.mT, _like(x, 2, 3, 4).mT), {}


def _solve_ex(x):
    for keep in (True, False):
        yield (_like(x, 2, 4, 4), _like(x, 2, 4, 3), keep), {}
    yield (_like(x, 3, 3), _like(x, 3, 1)), {}


def _square(x):
    for shape in ((2, 4, 4), (3, 3), (0, 3, 3)):
        yield (_like(x, *shape),), {}


def _lu_factor_ex(x):
    yield from _square(x)
    yield (_like(x, 2, 5, 3),), {}


def _lu_solve(x):
    LU, pivots, _ = ops.lu_factor_ex(_like(x, 2, 4, 4))
    for adjoint in (False, True):
        yield (LU, pivots, _like(x, 2, 4, 3), adjoint), {}


def _checked(x):
    yield (_like(x, 2, 3, 3), torch.zeros(2, dtype=torch.int32, device=x.device), "cholesky", "order {}"), {}


def _rope(x):
    cos, sin = _like(x, 3, 4), _like(x, 3, 4)
    yield (_like(x, 2, 3, 5, 8), _like(x, 2, 3, 1, 8), cos, sin, None, 2), {}
    yield (_like(x, 2, 3, 5, 8), None, cos, sin, None, 2), {}
    yield (_like(x, 2, 3, 5, 8).transpose(1, 2), _like(x, 2, 1, 3, 8), cos, sin, torch.tensor([2, 0, 1], device=x.device), 1), {}
    yield (_like(x, 2, 3, 5, 8), _like(x, 2, 3, 2, 8), _like(x, 2, 3, 8), _like(x, 2, 3, 8), None, 2), {}


def _layer_norm_fwd(x):
    yield (_like(x, 3, 8), _like(x, 8), _like(x, 8), 1, 1e-5), {}
    yield (_like(x, 3, 8), _like(x, 8), None, 1, 1e-5), {}
    yield (_like(x, 2, 3, 4), None, None, 2, 1e-5), {}


def _moments(x):
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return wide.mean(-1), (wide.var(-1, unbiased=False) + 1e-5).rsqrt()


def _layer_norm_bwd(x):
    for weight, bias in ((_like(x, 8), _like(x, 8)), (None, _like(x, 8)), (None, None)):
        h = _like(x, 3, 8)
        yield (_like(x, 3, 8), h, weight, bias, *_moments(h), 1), {}


def _add_layer_norm_fwd(x):
    for weight, bias in ((_like(x, 8), _like(x, 8)), (None, None)):
        yield (_like(x, 3, 8), _like(x, 3, 8), weight, bias, 1, 1e-5), {}


def _add_layer_norm_bwd(x):
    for weight, bias in ((_like(x, 8), _like(x, 8)), (_like(x, 8), None)):
        h = _like(x, 3, 8)
        yield (_like(x, 3, 8), _like(x, 3, 8), h, weight, bias, *_moments(h), 1), {}


def _softmax_fwd(x):
    yield (_like(x, 3, 8),), {}
    yield (_like(x, 8, 3).mT,), {}
    yield (_like(x, 2, 0, 3),), {}


def _softmax_bwd(x):
    yield (_like(x, 3, 8).softmax(-1), _like(x, 3, 8)), {}


def _losses(x, smoothing=0.1):
    targets = torch.tensor([1, -100, 3], device=x.device)
    for reduction in (0, 1, 2):
        yield _like(x, 3, 8), targets, (-100, smoothing, reduction)


def _cross_entropy_fwd(x):
    for logits, targets, options in _losses(x):
        yield (logits, targets, *options), {}


def _cross_entropy_bwd(x):
    for logits, targets, options in _losses(x):
        loss, lse, count = ops.cross_entropy_fwd(logits, targets, *options)
        yield (torch.ones_like(loss), logits, targets, lse, count, *options), {}


def _cross_entropy_bwd_(x):
    for logits, targets, options in _losses(x):
        loss, lse, count = ops.cross_entropy_fwd(logits, targets, *options)
        yield (logits, torch.ones_like(loss), targets, lse, count, *options), {}


def _linear_cross_entropy_fwd(x):
    for hidden, targets, options in _losses(x):
        for grads, bias in ((0, None), (7, _like(x, 5))):
            yield (hidden, _like(x, 5, 8), targets, bias, *options, 2, grads), {}


def _linear_cross_entropy_bwd(x):
    for hidden, targets, options in _losses(x):
        grad = _like(x, 3).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        yield (grad, hidden, _like(x, 5, 8), targets, _like(x, 5), *options[:2], 2, 7), {}


def _kl_div_fwd(x):
    yield (_like(x, 3, 8).log_softmax(-1), _like(x, 3, 8).log_softmax(-1)), {}


def _kl_div_bwd(x):
    for args, _ in _kl_div_fwd(x):
        for wanted in ((True, True), (False, True)):
            yield (ops.kl_div_fwd(*args), *args, *wanted), {}


def _kl_div_topk_fwd(x):
    for args, _ in _kl_div_fwd(x):
        yield (*args, torch.tensor([[0, 3], [1, 1], [7, 2]], device=x.device), 2), {}


def _kl_div_topk_bwd(x):
    for args, _ in _kl_div_topk_fwd(x):
        yield (ops.kl_div_topk_fwd(*args), *args), {}


def _bags(x):
    indices, offsets = torch.tensor([1, 0, 4, 1, 1], device=x.device), torch.tensor([0, 2, 2, 5], device=x.device)
    for mode, last, samples, padding in (
        (0, True, None, -1),
        (0, False, _like(x, 5), 0),
        (1, False, None, 1),
        (2, True, None, -1),
    ):
        yield _like(x, 6, 4), indices, offsets, samples, (mode, last, padding)


def _embedding_bag_fwd(x):
    for weight, indices, offsets, samples, options in _bags(x):
        yield (weight, indices, offsets, samples, *options), {}
    yield (_like(x, 4, 6).mT, indices.int(), offsets.int(), None, 2, True, -1), {}


def _embedding_bag_bwd(x):
    for weight, indices, offsets, samples, options in _bags(x):
        y, scale, largest = ops.embedding_bag_fwd(weight, indices, offsets, samples, *options)
        keys, order = torch.sort(indices, stable=True)
        for grads in ((True, samples is not None), (False, samples is not None)):
            dy = torch.ones_like(y)
            yield (dy, weight, indices, offsets, samples, scale, largest, keys, order, 6, *options, *grads), {}


def _gather(x):
    yield (_like(x, 5, 4), torch.randint(5, (3, 4), device=x.device)), {}
    yield (_like(x, 4, 5).mT, torch.randint(4, (5, 2), device=x.device), 1), {}


def _scatter_add(x):
    for args, _ in _gather(x):
        yield (args[0], args[1], _like(x, *args[1].shape), *args[2:]), {}


def _scatter_add_bwd(x):
    for args, _ in _gather(x):
        yield args, {}


def _index_select(x):
    yield (_like(x, 5, 4), 1, torch.randint(4, (3,), device=x.device)), {}


def _adamw_(x):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    scalars = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2, "maximize": False}
    for amsgrad in (False, True):
        params = [_like(x, 5), _like(x, 3, 4)]
        moments = [[torch.zeros_like(p, dtype=wide) for p in params] for _ in range(3)]
        steps = torch.zeros(2, device=x.device)
        lists = (params, [_like(x, *p.shape) for p in params], *moments[:2], moments[2] if amsgrad else [])
        yield (*lists, steps, None, None, None), scalars
        one = torch.ones((), device=x.device)
        yield (*lists, steps, one, 2 * one, 0 * one), scalars


SAMPLES = {
    "qr": _qr,
    "cholesky": _cholesky,
    "trsm": _trsm,
    "solve_ex": _solve_ex,
    "inv_ex": _square,
    "lu_factor_ex": _lu_factor_ex,
    "lu_solve": _lu_solve,
    "eigh": _eigh,
    "eigvalsh": _eigh,
    "checked": _checked,
    "svd": _svd(),
    "svd_thin": _svd("auto"),
    "rms_norm_fwd": _rms_norm_fwd,
    "rms_norm_bwd": _rms_norm_bwd,
    "add_rms_norm_fwd": _add_rms_norm_fwd,
    "add_rms_norm_bwd": _add_rms_norm_bwd,
    "rope_fwd": _rope,
    "rope_bwd": _rope,
    "layer_norm_fwd": _layer_norm_fwd,
    "layer_norm_bwd": _layer_norm_bwd,
    "add_layer_norm_fwd": _add_layer_norm_fwd,
    "add_layer_norm_bwd": _add_layer_norm_bwd,
    "softmax_fwd": _softmax_fwd,
    "softmax_bwd": _softmax_bwd,
    "cross_entropy_fwd": _cross_entropy_fwd,
    "cross_entropy_bwd": _cross_entropy_bwd,
    "cross_entropy_bwd_": _cross_entropy_bwd_,
    "linear_cross_entropy_fwd": _linear_cross_entropy_fwd,
    "linear_cross_entropy_bwd": _linear_cross_entropy_bwd,
    "kl_div_fwd": _kl_div_fwd,
    "kl_div_bwd": _kl_div_bwd,
    "kl_div_topk_fwd": _kl_div_topk_fwd,
    "kl_div_topk_bwd": _kl_div_topk_bwd,
    "embedding_bag_fwd": _embedding_bag_fwd,
    "embedding_bag_bwd": _embedding_bag_bwd,
    "gather": _gather,
    "scatter_add": _scatter_add,
    "scatter_add_bwd": _scatter_add_bwd,
    "index_select": _index_select,
    "adamw_": _adamw_,
    **{
        f"{name}_{way}": _activation(f"{name}_{way}")
        for name in ("gelu", "silu", "bias_gelu", "bias_silu", "geglu", "swiglu")
        for way in ("fwd", "bwd")
    },
}
IN_PLACE = ("adamw_", "cross_entropy_bwd_")


# Operators that know float32 and float64 alone: the functions widen half types.
LINEAR_ALGEBRA = (
    "qr", "cholesky", "trsm", "checked", "solve_ex", "inv_ex", "lu_factor_ex", "lu_solve", "eigh", "eigvalsh", "svd", "svd_thin",
)  # fmt: skip


def samples(name, device, dtype):
    torch.manual_seed(3)
    return list(SAMPLES[name](torch.empty(0, device=device, dtype=dtype)))


def leaves(value):
    def leaf(t):
        return t.detach().clone().requires_grad_() if t.is_floating_point() else t

    return torch.utils._pytree.tree_map_only(torch.Tensor, leaf, value)


# --- operators ------------------------------------------------------------------------------------


def test_every_operator_has_samples_here():
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("metalcore::")}
    assert {name.split(".")[0] for name in registered} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.dtypes(torch.float32, nightly=[torch.float64])
def test_opcheck_passes(device, dtype, name):
    for args, kwargs in samples(name, device, dtype):
        torch.library.opcheck(getattr(ops, name).default, args, kwargs)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in IN_PLACE])
@pytest.mark.dtypes(torch.float32, nightly=[torch.float64])
def test_opcheck_passes_with_inputs_that_require_gradients(device, dtype, name):
    for args, kwargs in samples(name, device, dtype):
        if name == "eigvalsh":  # its derivative is that of eigh
            continue
        if name == "qr" and (args[1:] == (2,) or (args[1:] == (1,) and args[0].shape[-2] > args[0].shape[-1])):
            continue  # these forms have no derivative
        if name.startswith("svd") and args[1] is False:
            continue
        torch.library.opcheck(getattr(ops, name).default, leaves(args), kwargs)


def assert_fakes_are_like_results(name, device, dtype):
    operator = getattr(ops, name).default
    for args, kwargs in samples(name, device, dtype):
        real = operator(*args, **kwargs)
        with FakeTensorMode() as mode:
            wrapped = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args)
            fake = operator(*wrapped, **kwargs)
        meta = operator(*torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), args), **kwargs)
        for got, want, other in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (fake, real, meta))):
            assert (got.shape, got.stride(), got.dtype, got.device) == (want.shape, want.stride(), want.dtype, want.device)
            assert (other.shape, other.stride(), other.dtype) == (want.shape, want.stride(), want.dtype)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in (*IN_PLACE, *LINEAR_ALGEBRA)])
def test_fakes_have_the_shapes_strides_and_dtypes_of_results(device, dtype, name):
    assert_fakes_are_like_results(name, device, dtype)


@pytest.mark.dtypes(*SINGLE)
@pytest.mark.parametrize("name", LINEAR_ALGEBRA)
def test_fakes_of_linear_algebra_have_the_shapes_strides_and_dtypes_of_results(device, dtype, name):
    assert_fakes_are_like_results(name, device, dtype)


def test_functions_take_meta_tensors(device, dtype):
    A = torch.empty(2, 5, 3, device="meta", dtype=dtype)
    assert [t.shape for t in metalcore.qr(A)] == [(2, 5, 3), (2, 3, 3)]
    weight = torch.empty(3, device="meta", dtype=dtype)
    assert metalcore.rms_norm(A, 3, weight).shape == A.shape
    assert [t.shape for t in metalcore.fused_add_rmsnorm(A, A, weight)] == [A.shape, A.shape]


# --- torch.compile --------------------------------------------------------------------------------


def call_qr(A):
    result = metalcore.qr(A)
    return result.Q * 2, result.R + 1


def call_qr_complete(A):
    Q, R = metalcore.qr(A[..., :3, :], mode="complete")
    return Q + 1, R


def call_rms_norm(x):
    return (metalcore.rms_norm(x, x.shape[-1:], None, 1e-5) + x,)


def call_residual(x):
    output, total = metalcore.fused_add_rmsnorm(x, x * 2, None)
    return output, total


def call_rope(x):
    q = x.unsqueeze(2).expand(-1, -1, 4, -1)
    cos, sin = (f(torch.arange(15, device=x.device, dtype=x.dtype)).view(5, 3) for f in (torch.cos, torch.sin))
    return metalcore.rope_fwd(q, x.unsqueeze(2), cos, sin)


def call_softmax(x):
    return metalcore.fused_softmax(x), metalcore.fused_softmax(x, 1) + x


def call_layer_norm(x):
    output, total = metalcore.fused_add_layernorm(x, x * 2, None, None)
    return metalcore.layer_norm(x, x.shape[-1:]), output, total


class Block(torch.nn.Module):
    """Both modules, as a transformer has them."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = metalcore.MetalRMSNorm(width), metalcore.FusedAddRMSNorm(width)
        torch.nn.init.normal_(self.first.weight)

    def forward(self, x):
        return self.second(self.first(x), x)


CALLS = {
    "qr": lambda: call_qr,
    "qr complete": lambda: call_qr_complete,
    "rms_norm": lambda: call_rms_norm,
    "fused_add_rmsnorm": lambda: call_residual,
    "rope": lambda: call_rope,
    "layer_norm": lambda: call_layer_norm,
    "softmax": lambda: call_softmax,
    "modules": lambda: Block(6),
}


def with_gradient(call, x):
    """Outputs, and the gradients of their weighted sum in the input and, of a module, in its parameters."""
    x = x.detach().clone().requires_grad_()
    parameters = list(call.parameters()) if isinstance(call, torch.nn.Module) else []
    outputs = call(x)
    weights = [torch.linspace(-1, 1, t.numel(), device=t.device, dtype=t.dtype).view(t.shape) for t in outputs]
    loss = sum((t * w).sum() for t, w in zip(outputs, weights))
    return [*outputs, *torch.autograd.grad(loss, [x, *parameters])]


@pytest.fixture
def clean_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS)
@pytest.mark.dtypes(torch.float32, nightly=[torch.float64])
def test_compiled_without_a_graph_break_it_gives_the_bits_of_eager(device, dtype, make, dynamic, clean_dynamo):
    call = make()
    call = call.to(device, dtype) if isinstance(call, torch.nn.Module) else call
    x = normal(4, 5, 6, device=device, dtype=dtype)
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for got, want in zip(compiled(x), call(x)):
        assert same_bits(got, want) and got.stride() == want.stride()
    for got, want in zip(with_gradient(compiled, x), with_gradient(call, x)):
        assert same_bits(got, want)


@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS)
@pytest.mark.dtypes(torch.float32)
def test_a_new_batch_size_compiles_nothing_anew(device, dtype, make, clean_dynamo):
    call = make()
    call = call.to(device) if isinstance(call, torch.nn.Module) else call
    for run in (lambda f, x: f(x), with_gradient):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
        compilations = set()
        for batch in (3, 2, 7, 30):
            x = normal(batch, 5, 6, device=device, dtype=dtype)
            assert all(same_bits(got, want) for got, want in zip(run(compiled, x), run(call, x)))
            compilations.add(counter.frame_count)
        assert len(compilations) == 1, "a new batch size was compiled anew"


@pytest.mark.dtypes(torch.float32)
def test_inductor_compiles_forward_and_backward(device, dtype, clean_dynamo):
    def call(x, A):
        output, total = metalcore.fused_add_rmsnorm(x, metalcore.rms_norm(x, x.shape[-1:]), None)
        return output, total, metalcore.qr(A).R

    x, A = normal(3, 8, device=device, dtype=dtype), normal(2, 4, 3, device=device, dtype=dtype)
    compiled = torch.compile(call, fullgraph=True)
    for function in (call, compiled):
        leaf = x.clone().requires_grad_()
        outputs = function(leaf, A)
        outputs[0].sum().backward()
        found = [*outputs, leaf.grad]
        if function is call:
            expected = found
    for got, want in zip(found, expected):
        assert same_bits(got, want)


# --- vmap -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reduced", "complete", "r"])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_vmap_makes_the_mapped_dimension_a_batch_dimension_of_qr(device, dtype, dim, mode):
    A = normal(4, 6, 5, device=device, dtype=dtype)
    if mode == "r":
        R = torch.func.vmap(lambda a: metalcore.qr(a, mode).R, in_dims=dim)(A)
        assert same_bits(R, metalcore.qr(A.movedim(dim, 0), mode).R)
        return
    mapped = torch.func.vmap(lambda a: metalcore.qr(a, mode), in_dims=dim)(A)
    for got, want in zip(mapped, metalcore.qr(A.movedim(dim, 0), mode)):
        assert same_bits(got, want)
    assert_qr(A.movedim(dim, 0), *mapped, mode)


def test_vmap_nests(device, dtype):
    A = normal(2, 5, 3, 4, device=device, dtype=dtype)
    mapped = torch.func.vmap(torch.func.vmap(metalcore.qr, in_dims=1), in_dims=0, out_dims=1)(A)
    for got, want in zip(mapped, metalcore.qr(A.transpose(1, 2))):
        assert same_bits(got.transpose(0, 1), want)


@pytest.mark.parametrize("dims", [(0, None), (1, None), (-1, None), (0, 0), (1, 1), (None, 0), (2, -1)], ids=str)
def test_vmap_of_rms_norm_is_a_loop(device, dtype, dims):
    x, weight = normal(6, 6, 6, device=device, dtype=dtype), normal(6, 6, device=device, dtype=dtype)
    weight = weight if dims[1] is not None else weight[0]
    part = lambda t, dim, i: t if dim is None else t.select(dim, i)  # noqa: E731
    call = lambda x, w: metalcore.rms_norm(x, 6, w, 1e-6)  # noqa: E731
    mapped = torch.func.vmap(call, in_dims=dims)(x, weight)
    loop = torch.stack([call(part(x, dims[0], i), part(weight, dims[1], i)) for i in range(6)])
    assert same_bits(mapped, loop)


@pytest.mark.parametrize(
    "dims", [(0, 0, None), (1, None, None), (None, 0, None), (2, 1, None), (0, 0, 0), (None, None, 1)], ids=str
)
def test_vmap_of_the_residual_form_is_a_loop(device, dtype, dims):
    x, residual, weight = (normal(*s, device=device, dtype=dtype) for s in ((5, 5, 5), (5, 5, 5), (5, 5)))
    # What is not mapped has the shape of one item.
    operands = [t if dim is not None else t[0] for t, dim in zip((x, residual, weight), dims)]
    part = lambda t, dim, i: t if dim is None else t.select(dim, i)  # noqa: E731
    mapped = torch.func.vmap(metalcore.fused_add_rmsnorm, in_dims=dims)(*operands)
    loop = [metalcore.fused_add_rmsnorm(*(part(t, dim, i) for t, dim in zip(operands, dims))) for i in range(5)]
    for got, want in zip(mapped, zip(*loop)):
        assert same_bits(got, torch.stack(want))


@pytest.mark.dtypes(*SINGLE)
def test_gradients_go_through_vmap(device, dtype):
    x, weight = normal(4, 3, 6, device=device, dtype=dtype), normal(6, device=device, dtype=dtype)
    dy, dR = normal(4, 3, 6, device=device, dtype=dtype), normal(4, 3, 3, device=device, dtype=dtype)
    A = normal(4, 5, 3, device=device, dtype=dtype)
    norm = lambda x: metalcore.rms_norm(x, 6, weight, 1e-6)  # noqa: E731
    residual = lambda x: metalcore.fused_add_rmsnorm(x, x, weight)[0]  # noqa: E731
    factor = lambda A: metalcore.qr(A).R  # noqa: E731
    loop = lambda call: lambda batch: torch.stack([call(item) for item in batch])  # noqa: E731
    # A batch of matrices and single ones may be factored in another order of operations.
    for call, reference, operand, incoming in (
        (norm, loop(norm), x, dy),
        (residual, loop(residual), x, dy),
        (factor, factor, A, dR),
    ):
        grads = []
        for function in (torch.func.vmap(call), reference):
            leaf = operand.clone().requires_grad_()
            function(leaf).backward(incoming)
            grads.append(leaf.grad)
        assert same_bits(*grads)
