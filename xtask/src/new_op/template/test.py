"""op_name through PyTorch: values, views, gradients, the operator's registration, errors."""

import math

import metalcore
import pytest
import torch

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def expected(x):
    """The same in torch, in float64."""
    return x.cpu().double() * math.nan  # torch's own function goes here


def test_values_are_torchs_within_the_bound(device, dtype):
    x = torch.randn(7, 300, device=device).to(dtype)
    want = expected(x)
    subnormal = 2.0**-25 if dtype == torch.float16 else 0.0
    bound = (UNIT[dtype] + 8 * min(UNIT[dtype], 2.0**-24)) * want.abs() + subnormal
    assert (metalcore.op_name(x).cpu().double() - want).abs().le(bound).all()


def test_a_view_gives_the_bits_of_its_copy(device):
    x = torch.randn(40, 30, device=device).t()[3:, ::2]
    assert torch.equal(metalcore.op_name(x), metalcore.op_name(x.contiguous()))


@pytest.mark.dtypes(torch.float64)
def test_the_gradient_is_that_of_differences(device, dtype):
    x = torch.randn(5, 3, dtype=dtype, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(metalcore.op_name, x)


def test_the_operator_is_registered_completely(device):
    x = torch.randn(4, 5, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.metalcore.op_name.default, (x,))


def test_wrong_input_is_named():
    with pytest.raises(TypeError, match=r"op_name: x: got dtype torch\.int64"):
        metalcore.op_name(torch.arange(3))
