"""RMSNorm, rotary embedding, SwiGLU and the merge against float64."""

import pytest
import torch

from edgekv_kernels import merge, merge_, rms_norm, rope_, swiglu


@pytest.mark.parametrize("shape", [(1, 576), (3, 70), (5, 9, 64), (2, 1)])
def test_rms_norm(form, worst, shape):
    """Guards the tail after the last whole vector and the per-head use on [T, H, D]."""
    torch.manual_seed(0)
    x, weight = torch.randn(shape) * 3, torch.randn(shape[-1])
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert worst(rms_norm(x, weight, 1e-5), expected) < 1e-6
    half = rms_norm(x, weight, 1e-5, out_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert worst(half, expected) < 8e-3  # Triton's interpreter cuts instead of rounding


def test_rms_norm_of_a_slice(form):
    """Norms per head are given slices of fused q, k, v rows, which are not contiguous."""
    torch.manual_seed(0)
    fused, weight = torch.randn(5, 100), torch.randn(16)
    heads = fused[:, 10:74].unflatten(1, (4, 16))
    assert torch.equal(rms_norm(heads, weight, 1e-5), rms_norm(heads.clone(), weight, 1e-5))


def test_rms_norm_in_place(form):
    """`out` may be the input: a kernel that wrote before its sum was complete would differ."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 100), torch.randn(100)
    expected = rms_norm(x.clone(), weight, 1e-6)
    rms_norm(x, weight, 1e-6, out=x)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("style", ["interleaved", "split"])
@pytest.mark.parametrize(("dim", "rotated"), [(64, 64), (80, 48), (16, 6)])
def test_rope(form, worst, style, dim, rotated):
    """Guards the pairing of each style, partial rotation, and rows that are slices of fused q, k, v."""
    torch.manual_seed(0)
    fused = torch.randn(5, 3 * dim + 7)
    x = fused[:, : 3 * dim].unflatten(1, (3, dim))
    before = x.clone().double()
    angle = torch.randn(5, rotated // 2) * 10
    rope_(x, angle.cos(), angle.sin(), style)
    pairs = before[..., :rotated]
    first, second = (pairs[..., 0::2], pairs[..., 1::2]) if style == "interleaved" else pairs.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)[:, None].to(
        torch.complex128
    )
    expected = before.clone()
    if style == "interleaved":
        expected[..., 0:rotated:2], expected[..., 1:rotated:2] = turned.real, turned.imag
    else:
        expected[..., :rotated] = torch.cat((turned.real, turned.imag), dim=-1)
    assert worst(x, expected) < 1e-6
    assert torch.equal(x[..., rotated:].double(), before[..., rotated:])


@pytest.mark.parametrize("width", [1536, 77, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu(form, worst, width, dtype):
    """Guards which half is the gate, and gates so large that e^-x overflows."""
    torch.manual_seed(0)
    gate_up = (torch.randn(3, 2 * width) * 4).to(dtype)
    gate_up[0, 0], gate_up[1, 0] = -1000, 1000
    gate, up = gate_up.double().chunk(2, dim=1)
    expected = gate * torch.sigmoid(gate) * up
    assert worst(swiglu(gate_up), expected) < 1e-6
    assert worst(swiglu(gate_up, out_dtype=torch.bfloat16), expected) < 8e-3


def _segments(count, generator):
    for _ in range(count):
        yield torch.randn(3, 4, 20, generator=generator), torch.randn(3, 4, generator=generator) * 20


def test_merge_any_order(form, worst):
    """Merging is a weighted mean: the order of segments must not matter."""
    segments = list(_segments(5, torch.Generator().manual_seed(3)))
    out, lse = merge(segments)
    weights = torch.stack([segment[1] for segment in segments]).double()
    total = weights.logsumexp(0)
    values = torch.stack([segment[0] for segment in segments]).double()
    expected = ((weights - total).exp()[..., None] * values).sum(0)
    assert worst(out, expected) < 1e-5
    assert worst(lse, total) < 1e-6
    other, _ = merge(segments[::-1])
    assert worst(other, expected) < 1e-5


def test_merge_empty_segments(form):
    """-inf minus -inf is NaN: an empty segment must change nothing, on either side or on both."""
    ((out, lse),) = _segments(1, torch.Generator().manual_seed(4))
    empty = torch.zeros_like(out), torch.full_like(lse, -torch.inf)
    right = merge_(out.clone(), lse.clone(), *empty)
    left = merge_(empty[0].clone(), empty[1].clone(), out, lse)
    both = merge_(empty[0].clone(), empty[1].clone(), *empty)
    for merged in (right, left):
        assert torch.equal(merged[0], out)
        assert torch.equal(merged[1], lse)
    assert torch.equal(both[0], empty[0])
    assert torch.equal(both[1], empty[1])
