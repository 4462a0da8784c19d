"""Attention whose queries are turned per leaf, against float64."""

import pytest
import torch

from edgekv_kernels import Turns, append_kv, attend_leaves


def turned_keys(k, turns, style):
    """Float64 keys [S, Hkv, D], those of leaf i turned by the opposite of turns[i]."""
    half = turns.shape[1] // 2
    rows = turns.double()[torch.arange(len(k)) // 16]
    cos, sin = rows[:, None, :half], -rows[:, None, half:]
    pairs = torch.arange(half)
    first, second = (2 * pairs, 2 * pairs + 1) if style == "interleaved" else (pairs, pairs + half)
    out = k.bfloat16().double()
    a, b = out[..., first], out[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


@pytest.mark.parametrize("style", ["split", "interleaved"])
@pytest.mark.parametrize(
    ("t", "s", "dim", "width"), [(1, 100, 64, 64), (3, 200, 80, 32), (1, 20, 128, 128), (20, 90, 64, 64)]
)
def test_each_leaf_sees_its_own_turn(form, worst, style, t, s, dim, width):
    """Guards the row of each leaf across threads and tiles, the sign, dimensions that are not turned, and reuse."""
    if form == "triton":
        t, s = min(t, 2), min(s, 50)
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(t, 6, dim, generator=generator)
    k, v = torch.randn(2, s, 2, dim, generator=generator)
    num_leaves = -(-s // 16)
    pool = torch.full((num_leaves + 2, 2, 2, 16, dim), torch.nan, dtype=torch.bfloat16)
    slots = torch.randperm(num_leaves + 2, generator=generator)[:num_leaves].int()
    append_kv(pool, slots, 0, k, v)
    angle = torch.rand(num_leaves, width // 2, generator=generator) * 6
    rows = torch.cat((angle.cos(), angle.sin()), dim=1)
    of = torch.randint(0, num_leaves, (num_leaves,), generator=generator, dtype=torch.int32)
    out, lse = attend_leaves(q, pool, slots, s, 0.2, turns=Turns(rows, of, style))
    keys = turned_keys(k, rows[of], style).repeat_interleave(3, dim=1)
    scores = torch.einsum("thd,shd->ths", q.double(), keys) * 0.2
    expected = torch.einsum(
        "ths,shd->thd", scores.softmax(-1), v.bfloat16().double().repeat_interleave(3, dim=1)
    )
    bound = 1e-5 if t <= 8 or form in ("reference", "triton") else 1e-2
    assert worst(out, expected) < bound
    assert float((lse.double() - scores.logsumexp(-1)).abs().max()) < 5 * bound


def test_no_turn_is_as_before(form, worst):
    """Cosine 1 and sine 0 change nothing: a layout may mix turned and unturned leaves."""
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(1, 4, 64, generator=generator)
    pool = torch.randn(3, 2, 2, 16, 64, generator=generator).bfloat16()
    slots = torch.tensor([2, 0, 1], dtype=torch.int32)
    turns = torch.cat((torch.ones(3, 32), torch.zeros(3, 32)), dim=1)
    plain, plain_lse = attend_leaves(q, pool, slots, 40, 0.2)
    out, lse = attend_leaves(q, pool, slots, 40, 0.2, turns=Turns.each(turns))
    assert worst(out, plain) < 1e-6
    assert worst(lse, plain_lse) < 1e-6
