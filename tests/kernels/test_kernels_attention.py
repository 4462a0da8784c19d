"""Attention over pool leaves, inside a block, and the writing of leaves, against float64."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgekv_kernels import append_kv, attend_block, attend_leaves, merge

FLOAT32_BOUND = 5e-6  # few queries: float32 arithmetic on the pool's bfloat16 values
BFLOAT16_BOUND = 1e-2  # many queries: products in bfloat16


def expected_attention(q, k, v, scale, *, causal=False):
    """Float64 attention of q [T, Hq, D] over the bfloat16 values of k, v [S, Hkv, D]."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.bfloat16().double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("thd,shd->ths", q.double(), keys) * scale
    if causal:
        scores = scores.masked_fill(torch.ones(len(q), len(k), dtype=torch.bool).triu(1)[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    return torch.einsum("ths,shd->thd", (scores - lse[..., None]).exp(), values), lse


def filled_pool(k, v, generator, spare=3):
    """A pool whose unused rows are NaN, the slots of the sequence scattered in it, and its order."""
    num_leaves = -(-len(k) // 16)
    pool = torch.full((num_leaves + spare, 2, k.shape[1], 16, k.shape[2]), torch.nan, dtype=torch.bfloat16)
    slots = torch.randperm(num_leaves + spare, generator=generator)[:num_leaves].int()
    append_kv(pool, slots, 0, k, v)
    return pool, slots


def tensors(t, s, hkv, group, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(t, hkv * group, dim, generator=generator) * 1.5
    k, v = torch.randn(2, s, hkv, dim, generator=generator) * 1.5
    return q, k, v, generator


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # shrinking costs minutes where the form is interpreted
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    t=st.integers(1, 40),
    s=st.integers(1, 400),
    hkv=st.integers(1, 8),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 32, 64, 80, 128]),
    seed=st.integers(0, 99),
)
def test_attend_leaves_any_shape(form, worst, t, s, hkv, group, dim, seed):
    """Guards partial last leaves (NaN lies behind them), grouped heads, and every unrolled size."""
    if form == "triton":
        t, s, hkv = min(t, 3), min(s, 90), min(hkv, 2)  # interpreted: slow
    q, k, v, generator = tensors(t, s, hkv, group, dim, seed)
    pool, slots = filled_pool(k, v, generator)
    out, lse = attend_leaves(q, pool, slots, s, dim**-0.5)
    expected, expected_lse = expected_attention(q, k, v, dim**-0.5)
    bound = FLOAT32_BOUND if t <= 8 or form in ("reference", "triton") else BFLOAT16_BOUND
    assert worst(out, expected) < bound
    assert float((lse.double() - expected_lse).abs().max()) < 5 * bound


@pytest.mark.parametrize("t", [1, 33])
@pytest.mark.parametrize("s", [64, 1003])
def test_merged_cuts_equal_the_whole(form, worst, t, s):
    """Any cut at leaf borders, merged in any order with empty segments between, is the whole."""
    if form == "triton":
        t, s = 1, 100
    q, k, v, generator = tensors(t, s, 3, 3, 64, 5)
    pool, slots = filled_pool(k, v, generator)
    cuts = [0, 1, 3, len(slots)]
    segments = [
        attend_leaves(q, pool, slots[a:b], min(16 * (b - a), s - 16 * a), 0.125) for a, b in pairwise(cuts)
    ]
    segments.insert(1, attend_leaves(q, pool, slots[:0], 0, 0.125))
    expected, expected_lse = expected_attention(q, k, v, 0.125)
    bound = FLOAT32_BOUND if t <= 8 or form in ("reference", "triton") else BFLOAT16_BOUND
    for order in (segments, segments[::-1]):
        out, lse = merge(order)
        assert worst(out, expected) < bound
        assert float((lse.double() - expected_lse).abs().max()) < 5 * bound


def test_nothing_to_attend_to(form):
    """No tokens: out 0 and lse -inf, although the buffers held something."""
    q, k, v, generator = tensors(2, 16, 1, 2, 16, 1)
    pool, slots = filled_pool(k, v, generator)
    out, lse = attend_leaves(q, pool, slots, 0, 1.0, out=torch.ones(2, 2, 16), lse=torch.ones(2, 2))
    assert torch.equal(out, torch.zeros(2, 2, 16))
    assert torch.equal(lse, torch.full((2, 2), -torch.inf))


def test_large_scores(form, worst):
    """Scores of some hundred: exp overflows unless the maximum is taken off first; sharp attention is one-hot."""
    q, k, v, generator = tensors(2, 40, 1, 2, 32, 2)
    pool, slots = filled_pool(k, v, generator)
    out, lse = attend_leaves(q, pool, slots, 40, 40.0)
    expected, expected_lse = expected_attention(q, k, v, 40.0)
    assert worst(out, expected) < 1e-3
    assert worst(lse, expected_lse) < 1e-5


def test_more_than_one_segment_of_keys(form, worst):
    """Prefill packs 4,096 keys at a time; the running state must survive the border."""
    if form == "triton":
        pytest.skip("interpreted: slow")
    q, k, v, generator = tensors(9, 4200, 1, 2, 32, 6)
    pool, slots = filled_pool(k, v, generator)
    out, lse = attend_leaves(q, pool, slots, 4200, 0.2)
    expected, expected_lse = expected_attention(q, k, v, 0.2)
    assert worst(out, expected) < BFLOAT16_BOUND
    assert worst(lse, expected_lse) < 1e-3


@pytest.mark.parametrize(
    ("t", "hkv", "group", "dim"), [(1, 2, 3, 64), (16, 3, 3, 64), (77, 1, 5, 80), (300, 2, 1, 32)]
)
def test_attend_block(form, worst, t, hkv, group, dim):
    """Guards the causal edge of every row, and rows that are slices of fused q, k, v."""
    q, k, v, _ = tensors(t, t, hkv, group, dim, 7)
    fused = torch.cat((q.flatten(1), k.flatten(1), v.flatten(1)), dim=1)
    parts = fused.split([q[0].numel(), k[0].numel(), v[0].numel()], dim=1)
    views = [part.unflatten(1, (-1, dim)) for part in parts]
    out, lse = attend_block(*views, dim**-0.5)
    expected, expected_lse = expected_attention(q, k, v, dim**-0.5, causal=True)
    assert worst(out, expected) < BFLOAT16_BOUND
    assert worst(lse, expected_lse) < BFLOAT16_BOUND


def test_block_and_leaves_make_the_whole(form, worst):
    """Prefill in two blocks (leaves + causal block, merged) equals causal attention over everything."""
    q, k, v, generator = tensors(48, 48, 2, 2, 32, 8)
    pool, slots = filled_pool(k[:32], v[:32], generator)
    past = attend_leaves(q[32:], pool, slots, 32, 0.2)
    block = attend_block(q[32:], k[32:], v[32:], 0.2)
    out, lse = merge([past, block])
    expected, expected_lse = expected_attention(q, k, v, 0.2, causal=True)
    assert worst(out, expected[32:]) < BFLOAT16_BOUND
    assert worst(lse, expected_lse[32:]) < BFLOAT16_BOUND


def test_append_kv(form):
    """Guards the slot and row of each token, the planes, rounding to nearest even, and all bytes around."""
    generator = torch.Generator().manual_seed(9)
    pool = torch.randn(6, 2, 3, 16, 20, generator=generator).bfloat16()
    k, v = torch.randn(2, 37, 3, 20, generator=generator)
    k[0, 0, 0], k[0, 0, 1], k[0, 0, 2] = 1 + 2**-8, 1 + 3 * 2**-8, torch.nan
    slots = torch.tensor([4, 1, 5], dtype=torch.int32)
    expected = pool.clone()
    for t in range(37):
        leaf, row = int(slots[(9 + t) // 16]), (9 + t) % 16
        expected[leaf, 0, :, row], expected[leaf, 1, :, row] = k[t].bfloat16(), v[t].bfloat16()
    append_kv(pool, slots, 9, k, v)
    assert pool[4, 0, 0, 9, 2].isnan()  # of any bit pattern
    pool[4, 0, 0, 9, 2] = expected[4, 0, 0, 9, 2] = 0
    assert torch.equal(pool.view(torch.int16), expected.view(torch.int16))
    assert pool[4, 0, 0, 9, :2].tolist() == [1.0, 1 + 2**-6]


def test_append_outside_the_slots_is_refused(form):
    """One token too many must not be written over a neighbour's slot."""
    pool = torch.zeros(2, 2, 1, 16, 16, dtype=torch.bfloat16)
    k = torch.zeros(2, 1, 16)
    with pytest.raises(AssertionError):
        append_kv(pool, torch.zeros(1, dtype=torch.int32), 15, k, k)
