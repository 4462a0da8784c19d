"""Products with packed weights against float64, and what the packed bytes mean."""

import pytest
import torch

from edgekv_kernels import (
    Packed4,
    Packed8,
    matmul4,
    matmul8,
    matmul16,
    take_row,
    take_rows4,
    take_rows8,
    unpack4,
    unpack8,
)

SHAPES = [(1, 576, 37), (2, 96, 5), (5, 2112, 9), (17, 64, 3), (1, 2112, 6)]


def bound(form, m):
    """Float32 arithmetic, but: with VNNI a single x is rounded to 16 bits of each group's largest value, and the
    Triton form hands more than 16 rows to a bfloat16 product.
    """
    if form == "native-avx512vnni" and m == 1:
        return 4e-5
    return 1e-2 if form == "triton" and m > 16 else 3e-6


def packed4(n, k, dtype):
    scale, offset = torch.rand(n, k // 32).to(dtype), torch.randn(n, k // 32).to(dtype)
    quants = torch.randint(0, 16, (n, k // 32, 32))
    low, high = quants[..., :16], quants[..., 16:]
    w = Packed4((low | high << 4).to(torch.uint8).flatten(1), scale, offset)
    return w, (quants * scale.double()[..., None] + offset.double()[..., None]).flatten(1)


def packed8(n, k, dtype, group, *, has_offset):
    quants = torch.randint(-128, 128, (n, k // group, group))
    scale = torch.rand(n, k // group).to(dtype)
    offset = torch.randn(n, k // group).to(dtype) if has_offset else None
    dense = quants * scale.double()[..., None] + (offset.double()[..., None] if has_offset else 0)
    return Packed8(quants.to(torch.int8).flatten(1), scale, offset), dense.flatten(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_matmul4(form, worst, m, k, n, dtype):
    """Guards the nibble order, rows left over after blocks of four, and K past the blocks of 1024 and 64 groups."""
    torch.manual_seed(0)
    w, dense = packed4(n, k, dtype)
    x = torch.randn(m, k)
    expected = x.double() @ dense.T
    out = matmul4(x, w)
    assert worst(out, expected) < bound(form, m)
    matmul4(x, w, out=out, accumulate=True)
    assert worst(out, 2 * expected) < bound(form, m)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("group", "has_offset"), [(16, True), (32, False), (32, True)])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_matmul8(form, worst, m, k, n, group, has_offset, dtype):
    """Guards signed quants, both group sizes, and a missing offset."""
    torch.manual_seed(0)
    w, dense = packed8(n, k, dtype, group, has_offset=has_offset)
    x = torch.randn(m, k)
    out = matmul8(x, w)
    assert worst(out, x.double() @ dense.T) < bound(form, m)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 590, 11), (3, 2112, 4), (16, 33, 7)])
def test_matmul16(form, worst, m, k, n):
    """Guards K that is no multiple of the vector, and sums in float32 although the weights are bfloat16."""
    torch.manual_seed(0)
    x, w = torch.randn(m, k), torch.randn(n, k).bfloat16()
    assert worst(matmul16(x, w), x.double() @ w.double().T) < 3e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_unpack(form, worst, dtype):
    """Unpacked weights are the exact values rounded once."""
    torch.manual_seed(0)
    w4, dense4 = packed4(7, 1184, dtype)
    w8, dense8 = packed8(7, 1184, dtype, 16, has_offset=True)
    for unpack, w, dense in ((unpack4, w4, dense4), (unpack8, w8, dense8)):
        assert worst(unpack(w, dtype=torch.float32), dense) < 2e-7
        assert worst(unpack(w), dense) < 4e-3
        out = torch.empty(w.shape, dtype=torch.bfloat16)
        assert unpack(w, out=out) is out
        assert torch.equal(out, unpack(w))


def test_take_rows(form, worst):
    """The embedding look-up reads the same bytes as the product."""
    torch.manual_seed(0)
    ids = torch.tensor([4, 0, 4])
    w4, dense4 = packed4(6, 96, torch.float16)
    w8, dense8 = packed8(6, 96, torch.float16, 32, has_offset=True)
    assert worst(take_rows4(w4, ids), dense4[ids]) < 2e-7
    assert worst(take_rows8(w8, ids), dense8[ids]) < 2e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("has_offset", [False, True])
def test_take_one_row(form, dtype, has_offset, worst):
    """The embedding of a decoded token is read at its own row's scales and offsets, not at the first's."""
    torch.manual_seed(0)
    w4, dense4 = packed4(6, 96, dtype)
    w8, dense8 = packed8(6, 96, dtype, 16, has_offset=has_offset)
    for row in (0, 4, 5):
        assert worst(take_row(w4, row), dense4[row : row + 1]) < 2e-7
        assert worst(take_row(w8, row), dense8[row : row + 1]) < 2e-7


def test_odd_scales(form, worst):
    """Float16 scales of every kind: denormal, zero, negative, the largest; a home-made conversion may lose them."""
    scale = torch.tensor([[6e-8, 0.0, -1.5, 65504.0, 5.9e-5, -6.2e-5]]).half()
    quants = torch.full((1, 192), 3, dtype=torch.int8)
    w = Packed8(quants, scale)
    expected = (quants.double().view(6, 32) * scale.double()[0][:, None]).flatten()
    assert torch.equal(unpack8(w, dtype=torch.float32)[0].double(), expected)
    x = torch.zeros(1, 192)
    x[0, 0] = 1e7
    assert worst(matmul8(x, w), expected[:1, None] * 1e7) < 1e-6


def test_wrong_shapes_are_refused():
    """A packed weight whose scales do not fit its quants must not reach a kernel that trusts addresses."""
    with pytest.raises(AssertionError):
        Packed4(torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(4, 3).half(), torch.zeros(4, 3).half())
    with pytest.raises(AssertionError):
        Packed8(torch.zeros(4, 60, dtype=torch.int8), torch.zeros(4, 2).half())
    w, _ = packed4(4, 64, torch.float16)
    with pytest.raises(AssertionError):
        matmul4(torch.zeros(1, 96), w)
    with pytest.raises(AssertionError):
        matmul4(torch.zeros(1, 64), w, accumulate=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda n, k: packed4(n, k, torch.float16),
        lambda n, k: packed8(n, k, torch.float16, 32, has_offset=False),
    ],
)
def test_inputs_of_any_size(form, worst, make):
    """A form that turns x into whole numbers must keep outliers and small vectors, and say NaN for no numbers.

    Beside an outlier the rest of its group of 32 is rounded more coarsely: 16 bits of the largest.
    """
    torch.manual_seed(0)
    product = matmul4 if make(1, 32)[0].quants.dtype == torch.uint8 else matmul8
    w, dense = make(5, 192)
    x = torch.randn(1, 192)
    x[0, 17], x[0, 100] = 3000.0, -2999.0
    for factor in (1.0, 1e-20, 1e20):
        assert worst(product(x * factor, w), (x * factor).double() @ dense.T) < 5 * bound(form, 1)
    assert torch.equal(product(torch.zeros(1, 192), w), torch.zeros(1, 5))
    for bad in (torch.nan, torch.inf, -torch.inf):
        x[0, 50] = bad
        assert not product(x, w).isfinite().any()
