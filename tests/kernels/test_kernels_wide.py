"""Products of many rows: bf16 factors, float32 results, in whichever order the weights lie."""

import pytest
import torch

import edgekv_kernels as kernels
from edgekv_kernels import dispatch

SHAPES = [(960, 576), (16, 2), (48, 32), (80, 34), (30, 31), (576, 1536)]  # the fifth fits no panel


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 6, 7, 37])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_product_has_float32_results(shape, rows, backend):
    """Guards the reason this product exists: only the factors are rounded to 16 bits, so the result is within
    float32 rounding of the exact product of the rounded factors. Row and panel remainders included."""
    torch.manual_seed(rows)
    x, w = torch.randn(rows, shape[1]), torch.randn(shape).bfloat16()
    exact = x.bfloat16().double() @ w.double().T
    with kernels.forced(backend):
        wide = kernels.make_wide(w)
        got = kernels.matmul_wide(x, wide)
    assert got.dtype == torch.float32
    assert float((got - exact).abs().max()) <= 2e-6 * shape[1]


def test_accumulate_adds_to_the_residual():
    """Guards `accumulate`: the residual stream is added to, not overwritten, and without it is overwritten."""
    x, w = torch.randn(9, 64), torch.randn(32, 64).bfloat16()
    wide = kernels.make_wide(w)
    total = torch.ones(9, 32)
    kernels.matmul_wide(x, wide, total, accumulate=True)
    assert torch.allclose(total, kernels.matmul_wide(x, wide) + 1, atol=1e-5)
    kernels.matmul_wide(x, wide, total)
    assert torch.equal(total, kernels.matmul_wide(x, wide))


def test_scratch_is_used():
    """Guards compact weights: arranging into given memory allocates nothing and changes no value."""
    w = torch.randn(32, 64).bfloat16()
    scratch = torch.zeros(4096, dtype=torch.bfloat16)
    wide = kernels.make_wide(w, scratch)
    native_bf16 = dispatch.cpu_form() == "native" and dispatch.native.has_bf16()
    assert wide.in_panels == native_bf16
    assert (wide.data is scratch) == native_bf16
    x = torch.randn(9, 64)
    assert torch.equal(kernels.matmul_wide(x, wide), kernels.matmul_wide(x, kernels.make_wide(w)))
