"""Models patched: the same logits and gradients, generation with a cache, and everything restored.

The models have the structure of those of transformers, in four families; ``--nightly`` runs the real ones where the
package is installed.
"""

from __future__ import annotations

import copy
import sys
import types
import warnings
import weakref

import metalcore
import pytest
import torch
import torch.nn.functional as F
from metalcore import overrides
from torch import nn

ROPE = overrides.ours("apply_rotary_pos_emb") is not None
SWIGLU = overrides.ours("swiglu") is not None and overrides.ours("geglu") is not None


# --- models ---------------------------------------------------------------------------------------


class LlamaRMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        x = hidden_states.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(dtype)


class GemmaRMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.rand(width) - 0.5)

    def forward(self, x):
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).type_as(x)


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states, gate=None):
        return super().forward(hidden_states)


class StrangeRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) + 0.25


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    width = cos.shape[-1]

    def rotated(x):
        return torch.cat([x[..., :width] * cos + rotate_half(x[..., :width]) * sin, x[..., width:]], -1)

    return rotated(q), rotated(k)


# The modelling module of this family, as transformers has one for each.
modelling = types.ModuleType("modelling_of_these_tests")
modelling.apply_rotary_pos_emb = apply_rotary_pos_emb
sys.modules[modelling.__name__] = modelling


class TinyAttention(nn.Module):
    def __init__(self, width, norm, eps, rotated):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(width, 32), nn.Linear(width, 16), nn.Linear(width, 16)
        self.o_proj = nn.Linear(32, width)
        self.q_norm = norm(8, eps)
        self.rotated = rotated

    def forward(self, x, position, cache):
        batch, length, _ = x.shape
        q, k, v = (p(x).view(batch, length, -1, 8).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        angle = position[None, :, None] * 10.0 ** -torch.arange(0, 1, 2 / self.rotated, device=x.device)
        angle = torch.cat((angle, angle), -1)
        q, k = modelling.apply_rotary_pos_emb(self.q_norm(q), k, angle.cos().to(x.dtype), angle.sin().to(x.dtype))
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
            cache[:] = [k, v]
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - length)
        y = F.scaled_dot_product_attention(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, 32))


TinyAttention.__module__ = modelling.__name__


class GatedMLP(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(width, 40), nn.Linear(width, 40), nn.Linear(40, width)
        self.act_fn = act

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class JoinedMLP(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(width, 80), nn.Linear(40, width)
        self.activation_fn = act

    def forward(self, hidden_states):
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))


class ScaledMLP(GatedMLP):
    def forward(self, x):
        return 0.5 * super().forward(x)


class Layer(nn.Module):
    def __init__(self, width, norm, mlp, act, eps, rotated):
        super().__init__()
        self.attention, self.mlp = TinyAttention(width, norm, eps, rotated), mlp(width, act)
        self.norm1, self.norm2 = norm(width, eps), norm(width, eps)

    def forward(self, x, position, cache):
        x = x + self.attention(self.norm1(x), position, cache)
        return x + self.mlp(self.norm2(x))


class Tiny(nn.Module):
    def __init__(self, norm, mlp, act, eps=1e-5, rotated=8, width=24):
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.layers = nn.ModuleList(Layer(width, norm, mlp, act, eps, rotated) for _ in range(2))
        self.norm, self.head = norm(width, eps), nn.Linear(width, 50)

    def forward(self, tokens, start=0, caches=(None, None)):
        position = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        # Small activations: an eps that is misread shows.
        x = self.embed(tokens) * 1e-2
        for layer, cache in zip(self.layers, caches):
            x = layer(x, position, cache)
        return self.head(self.norm(x))

    @torch.no_grad()
    def generate(self, tokens, count):
        caches, out, start = ([], []), tokens, 0
        for _ in range(count):
            logits = self(out[:, start:], start, caches)
            start = out.shape[1]
            out = torch.cat((out, logits[:, -1:].argmax(-1)), 1)
        return out


FAMILIES = {
    "llama": lambda: Tiny(LlamaRMSNorm, GatedMLP, nn.SiLU()),
    "gemma": lambda: Tiny(GemmaRMSNorm, GatedMLP, nn.GELU("tanh"), eps=1e-3),
    "phi3": lambda: Tiny(LlamaRMSNorm, JoinedMLP, nn.SiLU(), rotated=4),
    "erf": lambda: Tiny(GemmaRMSNorm, GatedMLP, nn.GELU(), eps=1e-2),
}
# Norms (two of a layer and one of its queries, one at the end), modelling modules, MLPs.
EXPECTED = 7 + ROPE + 2 * SWIGLU


def run(model, tokens):
    model.zero_grad()
    logits = model(tokens)
    F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten()).backward()
    return logits.detach(), [p.grad for p in model.parameters()]


@pytest.fixture(autouse=True)
def _rope_restored():
    yield
    assert modelling.apply_rotary_pos_emb is apply_rotary_pos_emb


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.dtypes(torch.float32, torch.bfloat16)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_agree_and_generation_and_restoring_work(family, device, dtype):
    model = FAMILIES[family]().to(device, dtype)
    tokens = torch.randint(50, (2, 9), device=device)
    keys, forwards = list(model.state_dict()), [m.forward.__func__ for m in model.modules() if hasattr(m.forward, "__func__")]
    logits, grads = run(model, tokens)
    generated = model.generate(tokens, 6)
    training = [m.training for m in model.modules()]
    assert metalcore.apply_to(model) == EXPECTED
    assert metalcore.apply_to(model) == 0
    assert list(model.state_dict()) == keys and [m.training for m in model.modules()] == training
    patched_logits, patched_grads = run(model, tokens)
    # Roundings of two layers, as a share of the largest element; half types differ by where they round.
    bound = 1e-4 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    assert patched_logits.dtype == logits.dtype
    for got, want in zip((patched_logits, *patched_grads), (logits, *grads)):
        assert float((got - want).abs().max()) <= bound * float(want.abs().max())
    if dtype == torch.float32:
        assert torch.equal(model.generate(tokens, 6), generated)
    assert metalcore.unpatch(model) == EXPECTED and metalcore.unpatch(model) == 0
    assert [m.forward.__func__ for m in model.modules() if hasattr(m.forward, "__func__")] == forwards
    assert not any("forward" in vars(m) for m in model.modules())
    assert torch.equal(run(model, tokens)[0], logits)


def test_norms_that_compute_something_else_are_left_alone(device):
    norms = nn.ModuleList([StrangeRMSNorm(8, 1e-5), GatedRMSNorm(8, 1e-5), LlamaRMSNorm(8, 1e-5), nn.RMSNorm(8)]).to(device)
    with pytest.warns(UserWarning, match="2 modules left alone"):
        assert metalcore.patch_transformers_rmsnorm(norms) == 2
    assert "forward" not in vars(norms[0]) and "forward" not in vars(norms[1])
    assert metalcore.unpatch(norms) == 2


def test_norms_keep_the_originals_dtype_where_the_weight_has_another(device):
    for norm in (LlamaRMSNorm(8, 1e-5).to(device), GemmaRMSNorm(8, 1e-5).to(device)):
        x = torch.randn(3, 8, device=device, dtype=torch.bfloat16)
        want = norm(x)
        assert metalcore.patch_transformers_rmsnorm(norm) == 1
        got = norm(x)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2.0**-7, atol=0)
        metalcore.unpatch(norm)


def test_the_probe_leaves_random_numbers_alone(device):
    norm = LlamaRMSNorm(8, 1e-5).to(device)
    state = torch.get_rng_state()
    metalcore.patch_transformers_rmsnorm(norm)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_copy_of_a_patched_model_is_patched_and_can_be_unpatched(device):
    norm = LlamaRMSNorm(8, 1e-5).to(device)
    metalcore.patch_transformers_rmsnorm(norm)
    twin = copy.deepcopy(norm)
    with torch.no_grad():
        twin.weight.mul_(2)
    x = torch.randn(3, 8, device=device)
    torch.testing.assert_close(twin(x), 2 * norm(x))
    assert metalcore.patch_transformers_rmsnorm(twin) == 0 and metalcore.unpatch(twin) == 1
    assert metalcore.unpatch(norm) == 1


def test_a_forward_that_somebody_else_set_is_left_alone(device):
    norm = LlamaRMSNorm(8, 1e-5).to(device)
    hook = lambda x: x  # noqa: E731
    norm.forward = hook
    with pytest.warns(UserWarning, match="left alone"):
        assert metalcore.patch_transformers_rmsnorm(norm) == 0
    del norm.forward
    metalcore.patch_transformers_rmsnorm(norm)
    norm.forward = hook
    with pytest.warns(UserWarning, match="replaced by someone else"):
        assert metalcore.unpatch(norm) == 0
    assert norm.forward is hook


def test_nothing_of_a_patched_model_outlives_it(device):
    model = FAMILIES["llama"]().to(device)
    metalcore.apply_to(model)
    gone = weakref.ref(model)
    del model
    import gc

    gc.collect()
    assert gone() is None  # and the fixture sees the rotary embedding restored


@pytest.mark.native
def test_a_patched_model_compiles_to_the_same(device):
    norm = LlamaRMSNorm(8, 1e-5).to(device)
    x = torch.randn(3, 8, device=device, requires_grad=True)
    want = norm(x)
    metalcore.patch_transformers_rmsnorm(norm)
    got = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, want)
    got.sum().backward()
    torch._dynamo.reset()


if ROPE:

    def test_the_rotary_embedding_stays_while_a_model_of_the_family_is_patched(device):
        first, second = FAMILIES["llama"](), FAMILIES["gemma"]()
        assert metalcore.patch_transformers_rope(first) == 1 and metalcore.patch_transformers_rope(second) == 0
        assert metalcore.unpatch(first) == 0 and modelling.apply_rotary_pos_emb is not apply_rotary_pos_emb
        assert metalcore.unpatch(second) == 1

    def test_another_rotation_is_left_alone(monkeypatch):
        monkeypatch.setattr(modelling, "apply_rotary_pos_emb", lambda q, k, cos, sin, unsqueeze_dim=1: (q, k))
        with pytest.warns(UserWarning, match="rotates otherwise"):
            assert metalcore.patch_transformers_rope(FAMILIES["llama"]()) == 0
        monkeypatch.undo()


if SWIGLU:

    def test_an_mlp_that_computes_something_else_is_left_alone(device):
        with pytest.warns(UserWarning, match="1 modules left alone"):
            assert metalcore.patch_transformers_swiglu(ScaledMLP(8, nn.SiLU()).to(device)) == 0
        assert metalcore.patch_transformers_swiglu(GatedMLP(8, nn.ReLU()).to(device)) == 0

    def test_projections_stay_modules(device):
        mlp = GatedMLP(8, F.silu).to(device)
        x = torch.randn(3, 8, device=device)
        assert metalcore.patch_transformers_swiglu(mlp) == 1
        mlp.gate_proj = nn.Sequential(mlp.gate_proj, nn.Identity())
        torch.testing.assert_close(mlp(x), GatedMLP.forward(mlp, x))
        assert metalcore.unpatch(mlp) == 1


# --- the package itself ---------------------------------------------------------------------------

REAL = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text", "Phi3")


@pytest.mark.nightly
@pytest.mark.parametrize("family", REAL)
def test_models_of_transformers(family, device):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    more = {
        "vocab_size": 99,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
    }
    config = getattr(transformers, f"{family}Config")
    name = family.removesuffix("Text") + "ForCausalLM"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, name)(config(**sizes, **more)).to(device).eval()
    tokens = torch.randint(3, 99, (2, 11), device=device)

    def outcome():
        model.zero_grad()
        result = model(tokens, labels=tokens)
        result.loss.backward()
        return (
            result.logits.detach(),
            [p.grad.clone() for p in model.parameters()],
            model.generate(tokens, max_new_tokens=5, do_sample=False),
        )

    norms = sum("RMSNorm" in type(m).__name__ for m in model.modules())
    before = outcome()
    expected = norms + ROPE + 2 * SWIGLU
    assert metalcore.apply_to(model) == expected and metalcore.apply_to(model) == 0
    after = outcome()
    for got, want in zip((after[0], *after[1]), (before[0], *before[1])):
        assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())
    assert torch.equal(after[2], before[2])
    assert metalcore.unpatch(model) == expected
    assert all(torch.equal(a, b) for a, b in zip(outcome()[1], before[1]))
