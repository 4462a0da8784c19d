"""Scores of single leaves, and the level above nodes, against float64."""

import pytest
import torch
from test_kernels_selection import index, turned_queries

from edgekv_kernels import Turns, leaf_logsumexp, leaf_scores, node_bounds, nodes_of_keys, nodes_of_nodes
from edgekv_kernels.reference.abstracts import decode_keys

HEADS, GROUP, DIM, LEAVES = 2, 3, 32, 11


def turns_of(generator, num_rows, style):
    angle = torch.rand(num_rows, DIM // 2, generator=generator) * 6
    return None if style is None else torch.cat([angle.cos(), angle.sin()], dim=1)


def expected(q, keys, turns, style):
    """Float64 scores [T, Hq, n, 16] of keys [n, Hkv, 16, D]."""
    queries = q.double().expand(len(keys), *q.shape) if turns is None else turned_queries(q, turns, style)
    keys = keys.double().repeat_interleave(GROUP, dim=1)
    return torch.einsum("nthd,nhsd->thns", queries, keys) * 0.2


@pytest.mark.parametrize("style", [None, "split", "interleaved"])
@pytest.mark.parametrize("num_queries", [1, 4])
def test_scores_by_low_bit_keys(style, num_queries):
    """Guards the heads' order and the turn of each leaf's own query."""
    q, rows, _, generator = index(LEAVES, HEADS, GROUP, DIM, num_queries)
    turns = turns_of(generator, LEAVES, style)
    got = leaf_scores(q, rows, 0.2, None if turns is None else Turns.each(turns, style))
    want = expected(q, decode_keys(rows, HEADS, DIM), turns, style)
    assert torch.allclose(got.double(), want, atol=1e-4)


@pytest.mark.parametrize("style", [None, "split", "interleaved"])
@pytest.mark.parametrize("missing", [0, 5])
def test_what_each_leaf_would_get(style, missing):
    """Guards unfinished leaves: what lies behind the last token in the pool is of another conversation."""
    q, _, _, generator = index(LEAVES, HEADS, GROUP, DIM, 2)
    pool = torch.randn(20, 2, HEADS, 16, DIM, generator=generator).bfloat16()
    slots = torch.randperm(20, generator=generator)[:LEAVES].int()
    turns = turns_of(generator, LEAVES, style)
    scores = expected(q, pool[slots.long(), 0], turns, style)
    scores[:, :, -1, 16 - missing :] = -torch.inf
    each = None if turns is None else Turns.each(turns, style)
    got = leaf_logsumexp(q, pool, slots, LEAVES * 16 - missing, 0.2, each)
    assert torch.allclose(got.double(), scores.logsumexp(-1), atol=1e-4)


def test_bounds_of_the_next_level_enclose_those_below():
    """Guards best-first search: a parent whose bound is below its child's hides a winner."""
    q, rows, _, _ = index(128, HEADS, GROUP, DIM, 3)
    nodes = nodes_of_keys(rows, HEADS, DIM)
    above = nodes_of_nodes(nodes, DIM)
    assert above.shape == (2, nodes.shape[1])
    lower, upper = node_bounds(q, nodes, 0, 16, 0.2)
    lowest, highest = node_bounds(q, above, 0, 2, 0.2)
    assert (highest.repeat_interleave(8, -1) >= upper - 1e-4).all()
    assert (lowest.repeat_interleave(8, -1) <= lower + 1e-4).all()
    scores = leaf_scores(q, rows, 0.2).amax(-1)
    assert (scores <= upper.repeat_interleave(8, -1) + 1e-4).all()
