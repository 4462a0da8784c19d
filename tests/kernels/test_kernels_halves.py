"""The two halves of a layer for one token, against float64."""

from dataclasses import replace

import pytest
import torch

from edgekv_kernels import LayerWeights, Matrix, Packed4, Packed8, after_attend_, before_attend


def bound(form):
    """Float32 arithmetic through two products in a row; with VNNI their inputs are rounded to 16 bits."""
    return 4e-5 if form == "native-avx512vnni" else 5e-6


def packed4(n, k):
    quants = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    scale, offset = torch.rand(n, k // 32).half() / 8, torch.randn(n, k // 32).half() / 2
    grouped = quants.view(n, -1, 16)
    codes = torch.cat((grouped & 15, grouped >> 4), dim=2).double()
    return Packed4(quants, scale, offset), (codes * scale.double()[..., None] + offset.double()[..., None])


def packed8(n, k, group=32):
    quants = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    scale = torch.rand(n, k // group) / 64
    return Packed8(quants, scale), quants.double().view(n, -1, group) * scale.double()[..., None]


def bfloat16(n, k):
    weight = torch.randn(n, k).bfloat16()
    return weight, weight.double()


def matrix(make, n, k, *, bias):
    """A Matrix and the same as float64: (weights [n, k], bias [n])."""
    weight, dense = make(n, k)
    added = torch.randn(n) if bias else None
    dense_bias = torch.zeros(n, dtype=torch.float64) if added is None else added.double()
    return Matrix(weight, added), (dense.reshape(n, k), dense_bias)


def layer_of(makers, hidden, ffn, heads, kv_heads, dim, *, style, bias=False, norms=False):
    """A layer and its float64 twin; `makers`: of q, k, v (or all joined), out, gate and up (or joined), down."""
    (qkv, out, gate_up, down), kv = makers, kv_heads * dim
    sizes = [heads * dim, kv, kv] if len(qkv) == 3 else [heads * dim + 2 * kv]
    q = [matrix(make, n, hidden, bias=bias) for make, n in zip(qkv, sizes, strict=True)]
    g = [matrix(make, 2 * ffn // len(gate_up), hidden, bias=bias) for make in gate_up]
    o, d = matrix(out, hidden, heads * dim, bias=bias), matrix(down, hidden, ffn, bias=bias)
    attn_norm, ffn_norm = torch.rand(hidden), torch.rand(hidden)
    q_norm, k_norm = (torch.rand(dim), torch.rand(dim)) if norms else (None, None)
    layer = LayerWeights(
        attn_norm=attn_norm,
        qkv=tuple(m for m, _ in q),
        q_norm=q_norm,
        k_norm=k_norm,
        attn_out=o[0],
        ffn_norm=ffn_norm,
        gate_up=tuple(m for m, _ in g),
        down=d[0],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        eps=1e-5,
        rope_style=style,
    )
    return layer, {"q": [x for _, x in q], "g": [x for _, x in g], "o": [o[1]], "d": [d[1]]}


def times(x, parts):
    return torch.cat([w @ x + b for w, b in parts])


def normed(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight.double()


def rotated(x, cos, sin, style):
    half, x = len(cos), x.clone()
    a, b = (
        (x[:, 0 : 2 * half : 2], x[:, 1 : 2 * half : 2])
        if style == "interleaved"
        else (x[:, :half], x[:, half : 2 * half])
    )
    new_a, new_b = a * cos - b * sin, a * sin + b * cos
    a.copy_(new_a)
    b.copy_(new_b)
    return x


def check_halves(form, worst, layer, dense, half):
    hidden = torch.randn(1, len(layer.attn_norm))
    cos, sin = torch.randn(1, half), torch.randn(1, half)
    q, k, v = before_attend(hidden, layer, cos, sin)
    heads = times(normed(hidden[0].double(), layer.attn_norm), dense["q"]).view(-1, layer.head_dim)
    sizes = (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
    for part, expected, norm in zip(
        (q, k, v), heads.split(sizes), (layer.q_norm, layer.k_norm, None), strict=True
    ):
        wanted = expected if norm is None else normed(expected, norm)
        if part is not v:
            wanted = rotated(wanted, cos[0].double(), sin[0].double(), layer.rope_style)
        assert part.shape == (1, *wanted.shape)
        assert worst(part[0], wanted) < bound(form)
    attended = torch.randn(1, layer.num_heads, layer.head_dim)
    wanted = hidden[0].double() + times(attended.flatten().double(), dense["o"])
    gate, up = times(normed(wanted, layer.ffn_norm), dense["g"]).chunk(2)
    wanted = wanted + times(torch.nn.functional.silu(gate) * up, dense["d"])
    assert after_attend_(hidden, attended, layer) is hidden
    assert worst(hidden[0], wanted) < bound(form)


@pytest.mark.parametrize("threads", [1, 3])
def test_joined_matrices(form, worst, threads):
    """Guards rows shared out to threads, gate and up rows that belong together, and the order of the phases."""
    torch.manual_seed(0)
    joined = [packed4], packed4, [packed4], packed4
    layer, dense = layer_of(joined, 576, 544, 9, 3, 64, style="split")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_halves(form, worst, layer, dense, half=32)
    finally:
        torch.set_num_threads(before)


def test_matrices_of_several_codes(form, worst):
    """Guards borders between matrices, biases, norms per head, interleaved and partial rotation, odd row counts."""
    torch.manual_seed(1)
    mixed = [packed4, bfloat16, packed8], packed8, [packed8, packed4], bfloat16
    layer, dense = layer_of(mixed, 160, 96, 3, 1, 32, style="interleaved", bias=True, norms=True)
    check_halves(form, worst, layer, dense, half=12)


def test_the_weights_are_checked():
    """A layer whose matrices do not fit each other must not reach a kernel that trusts addresses."""
    torch.manual_seed(2)
    layer, _ = layer_of(([packed4], packed4, [packed4], packed4), 64, 32, 2, 1, 32, style="split")
    for wrong in (
        {"num_heads": 3},
        {"down": layer.attn_out},
        {"gate_up": layer.qkv},
        {"q_norm": torch.ones(32)},
    ):
        with pytest.raises(AssertionError):
            replace(layer, **wrong)
    with pytest.raises(AssertionError):
        before_attend(torch.zeros(2, 64), layer, torch.zeros(2, 16), torch.zeros(2, 16))
    with pytest.raises(AssertionError):
        after_attend_(torch.zeros(1, 64), torch.zeros(1, 3, 32), layer)
