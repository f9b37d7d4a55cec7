"""AdamW: a whole parameter group in a constant number of launches."""

import functools
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import _native
from ._operators import check_float64, compute_dtype, metal_for

_PLAIN = (Tensor, torch.nn.Parameter)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# The operator, for who calls the step as a function of tensors (torch.compile, metalcore_backend).
_library = torch.library.Library("metalcore", "FRAGMENT")
_library.define(
    "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
    " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!) steps, Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf, *,"
    " float lr, float beta1, float beta2, float eps, float weight_decay, bool maximize) -> ()"
)


@torch.library.impl(_library, "adamw_", "CompositeExplicitAutograd")
def _adamw_(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr_tensor, grad_scale, found_inf, **scalars):
    if not params:
        return
    lists = [list(l) for l in (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)]
    _native.adamw_(lists, steps, lr_tensor, grad_scale, found_inf, scalars, metal_for(lists[0][0]))


@torch.library.register_fake("metalcore::adamw_", lib=_library)
def _(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr_tensor, grad_scale, found_inf, **scalars):
    return None


class _Bucket(NamedTuple):
    """Parameters of a group that one call updates (one device, one dtype), with their state."""

    params: list
    exp_avgs: list
    exp_avg_sqs: list
    max_exp_avg_sqs: list
    steps: Tensor
    changed: list  # every tensor that a step writes to
    native: Any  # None on mps, where every launch is a Python call anyway, and for what is read through Python alone


def _linear(tensor: Tensor) -> Tensor:
    """A contiguous view of the same memory where the tensor has no gaps (a transposed one, say), else itself."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1 and stride != expected:
            return tensor
        expected *= size
    return tensor.as_strided((tensor.numel(),), (1,))


def _hooked(step: Callable) -> Callable:
    """torch's wrapper of a step (hooks, profiler), but only where somebody looks: it holds up the launch."""
    watched = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def hooked(self, *args, **kwargs):
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        hooks = hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        # torch wraps the step of a derived class itself.
        if (hooks or torch.autograd._profiler_enabled()) and type(self).step is hooked:
            return watched(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    hooked.hooked = True  # what torch looks for before it wraps a step
    return hooked


class MetalAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` with the step of a whole group in a constant number of launches.

    Same arguments, parameter groups, hooks, closures and state_dict (both ways). All arithmetic in float32 (float64 for
    float64): half parameters keep float32 moments and are rounded once. lr may be a tensor. ``foreach``, ``fused`` and
    ``capturable`` are accepted: there is one implementation, and it can always be captured in a CUDA graph.
    ``differentiable=True`` runs torch's own differentiable formula. GradScaler's found_inf and grad_scale are looked at
    on the device: nothing waits for it.

    step: m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; p <- p (1 - lr wd) - lr / (1 - b1^t) m / (sqrt(v) /
    sqrt(1 - b2^t) + eps), v the largest so far with amsgrad. Source: Loshchilov & Hutter, arXiv 1711.05101.

    Raises ValueError for a hyperparameter out of range or foreach with fused, NotImplementedError for sparse gradients
    and complex parameters.
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: Optional[bool] = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: Optional[bool] = None,
    ) -> None:
        if foreach and fused:
            raise ValueError("MetalAdamW: fused: got foreach=True and fused=True, expected at most one of them")
        if differentiable and fused:
            raise ValueError("MetalAdamW: differentiable: got True with fused=True, expected at most one of them")
        rate = lr.reshape(()) if isinstance(lr, Tensor) and lr.numel() == 1 else lr
        super().__init__(
            params, rate, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=True, differentiable=differentiable
        )
        for group in (*self.param_groups, self.defaults):
            group.update(foreach=foreach, capturable=capturable, fused=fused)
        self._step_supports_amp_scaling = True
        self._buckets: dict[int, _Bucket] = {}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._step_supports_amp_scaling = True
        self._buckets = {}

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch, but float32 moments stay float32 whatever the parameter's dtype; half ones are widened."""
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        ids = (i for group in state_dict["param_groups"] for i in group["params"])
        params = (p for group in self.param_groups for p in group["params"])
        for i, p in zip(ids, params):
            for key, value in saved.get(i, {}).items():
                if isinstance(value, Tensor) and key != "step":
                    self.state[p][key] = value.detach().to(device=p.device, dtype=compute_dtype(p.dtype), copy=True)
        self._buckets = {}

    @torch.no_grad()
    def _bucket(self, params: list, amsgrad: bool) -> _Bucket:
        """The state of ``params``, made where it is missing; steps become views of one tensor."""
        device, dtype = params[0].device, compute_dtype(params[0].dtype)
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if amsgrad else ("exp_avg", "exp_avg_sq")
        states = [self.state[p] for p in params]
        for p, state in zip(params, states):
            for name in names:
                value = state.get(name)
                if value is None:
                    state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
                elif value.dtype != dtype or value.device != device or value.stride() != p.stride():
                    state[name] = torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format).copy_(value)
        views = [torch.as_tensor(s.get("step", 0.0), dtype=torch.float32, device=device).reshape(()) for s in states]
        steps = views[0]._base
        together = steps is not None and steps.shape == (len(views),)
        if not together or any(v._base is not steps or v.storage_offset() != i for i, v in enumerate(views)):
            steps = torch.stack(views)
            views = list(steps.unbind())
        for state, view in zip(states, views):
            state["step"] = view
        moments = [[s[name] for s in states] for name in names]
        if not amsgrad:
            moments.append([])
        changed = [t for tensors in (params, *moments) for t in tensors] + [steps]  # whose version its views have
        native = None
        if metal_for(steps) is None and all(type(p) in _PLAIN for p in params) and not any(t.is_inference() for t in changed):
            native = _native.AdamWGroup.of(params, states, *moments, steps, views, self.state)
        return _Bucket(params, *moments, steps, changed, native)

    def _scalars(self, group: dict, device: torch.device, dtype: torch.dtype) -> tuple[list, dict]:
        """Tensors that are read on the device (lr, grad_scale, found_inf; None where absent), and numbers."""
        lr = group["lr"]
        if isinstance(lr, Tensor):
            if lr.device.type == "cpu":
                lr = float(lr)  # nothing waits for it
            else:
                lr = lr.to(device=device, dtype=dtype).reshape(())
        scalers = [getattr(self, "grad_scale", None), getattr(self, "found_inf", None)]
        tensors = [lr if isinstance(lr, Tensor) else None]
        tensors += [None if t is None else t.to(device=device, dtype=torch.float32) for t in scalers]
        beta1, beta2 = group["betas"]
        return tensors, {
            "lr": 0.0 if tensors[0] is not None else lr,
            "beta1": float(beta1),
            "beta2": float(beta2),
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }

    def _update(self, params: list, grads: list, group: dict) -> _Bucket:
        """The step of parameters of one device and dtype, with gradients of one dtype, of any layout."""
        bucket = self._bucket(params, group["amsgrad"])
        tensors, scalars = self._scalars(group, bucket.steps.device, compute_dtype(params[0].dtype))
        lists = [params, grads, bucket.exp_avgs, bucket.exp_avg_sqs, bucket.max_exp_avg_sqs]
        copies: list = []
        lists[1] = [g.resolve_neg() for g in grads]
        if not all(t.is_contiguous() for l in lists for t in l):
            lists, copies = self._contiguous(lists)
        _native.adamw_(lists, bucket.steps, *tensors, scalars, metal_for(bucket.steps))
        for original, copy in copies:
            original.copy_(copy)
        return bucket

    @staticmethod
    def _contiguous(lists: list) -> tuple[list, list]:
        """Contiguous stand-ins: views of the same memory where p, g and their state are laid out alike, else copies
        (and which of them to copy back)."""
        rows, copies = [], []
        for row in zip(*(l for l in lists if l)):
            views = [_linear(t) for t in row]
            if not all(v.is_contiguous() for v in views) or len({t.stride() for t in row}) > 1:
                views = [t.contiguous() for t in row]
                copies += [(t, v) for i, (t, v) in enumerate(zip(row, views)) if i != 1 and v is not t]
            rows.append(views)
        columns = [list(column) for column in zip(*rows)]
        return columns + [[]] * (5 - len(columns)), copies

    @_hooked
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """One step. ``closure`` reevaluates the model and returns the loss, as in torch."""
        if any(group["differentiable"] for group in self.param_groups):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Every gradient is looked at before anything is changed.
        plans = [self._again(i, group) or self._sorted(group) for i, group in enumerate(self.param_groups)]
        for index, (group, plan) in enumerate(zip(self.param_groups, plans)):
            if isinstance(plan, _native.AdamWStep):
                bucket = self._buckets[index]
                plan.run(*self._scalars(group, bucket.steps.device, bucket.exp_avgs[0].dtype))
                continue
            self._buckets.pop(index, None)
            pairs, complete = plan
            with torch.no_grad():
                for params, grads in pairs:
                    bucket = self._update(params, grads, group)
                    torch.autograd.graph.increment_version(bucket.changed)
            if complete:
                self._buckets[index] = bucket
        return loss

    def _again(self, index: int, group: dict) -> Any:
        """The step of a group whose parameters, gradients and state are laid out as in the step before, found without a
        loop in Python; else None."""
        bucket = self._buckets.get(index)
        if bucket is None or bucket.native is None or bool(bucket.max_exp_avg_sqs) != group["amsgrad"]:
            return None
        return bucket.native.prepare(group["params"], self.state)

    @staticmethod
    def _sorted(group: dict) -> tuple[list, bool]:
        """(params, grads) with a gradient, by device, dtype and gradient's dtype; whether these are all, of one kind."""
        pairs: dict[tuple, tuple[list, list]] = {}
        for p in group["params"]:
            g = p.grad
            if g is None:
                continue
            if g.layout is not torch.strided:
                raise NotImplementedError(f"MetalAdamW: grad: got layout {g.layout}, expected dense gradients")
            for name, dtype in (("params", p.dtype), ("grad", g.dtype)):
                if dtype not in _FLOATS:
                    raise NotImplementedError(f"MetalAdamW: {name}: got dtype {dtype}, expected a real floating dtype")
            check_float64("MetalAdamW", "params", p)
            check_float64("MetalAdamW", "grad", g)
            params, grads = pairs.setdefault((p.device, p.dtype, g.dtype), ([], []))
            params.append(p)
            grads.append(g)
        whole = [params for params, _ in pairs.values()]
        return list(pairs.values()), len(whole) == 1 and len(whole[0]) == len(group["params"])
