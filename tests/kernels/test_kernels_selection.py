"""Scores of leaves and nodes against float64, and the choice of the best, over all forms."""

import pytest
import torch

from edgekv_kernels import (
    Turns,
    candidate_columns,
    forced,
    leaf_bounds,
    node_bounds,
    pack_keys,
    pack_nodes,
    score_among,
    score_leaves,
    score_nodes,
    select_leaves,
)
from edgekv_kernels.reference.abstracts import decode_keys, decode_nodes

MASS_BOUND = 0.08  # relative to the largest: 8-bit products move a score by some hundredths


def index(num_leaves, num_kv_heads, group, dim, num_queries=1, seed=0):
    """Queries, and the rows of an index over random keys."""
    generator = torch.Generator().manual_seed(seed)
    width = torch.rand(dim, generator=generator) * 2
    keys = torch.randn(num_leaves, 2, num_kv_heads, 16, dim, generator=generator) * width
    slots = torch.arange(num_leaves, dtype=torch.int32)
    pool = keys.bfloat16()
    q = torch.randn(num_queries, num_kv_heads * group, dim, generator=generator)
    whole = slots[: num_leaves // 8 * 8]
    with forced("reference"):  # packing has tests of its own
        return q, pack_keys(pool, slots), pack_nodes(pool, whole), generator


def turned_queries(q, turns, style):
    """Float64 queries, once per row of turns: [n, T, Hq, D]."""
    half = turns.shape[1] // 2
    cos, sin = turns.double()[:, None, None].split(half, dim=-1)
    out = q.double().expand(len(turns), *q.shape).clone()
    pairs = torch.arange(half)
    first, second = (2 * pairs, 2 * pairs + 1) if style == "interleaved" else (pairs, pairs + half)
    a, b = out[..., first], out[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def expected_mass(q, keys, scale, turns=None, style="split"):
    """Float64 softmax over the decoded keys, summed over queries and heads."""
    dim, num_heads = q.shape[2], q.shape[1]
    leaves = decode_keys(keys, keys.shape[1] // (6 * dim + 8), dim).double()
    leaves = leaves.repeat_interleave(num_heads // leaves.shape[1], dim=1)
    queries = q.double().expand(len(keys), *q.shape) if turns is None else turned_queries(q, turns, style)
    scores = torch.einsum("nthd,nhsd->thns", queries, leaves) * scale
    return scores.flatten(2).softmax(-1).unflatten(2, (len(keys), 16)).sum((0, 1, 3))


def angles(num_rows, width, generator):
    """Turns of which some neighbours are alike, as in runs of columns that move together."""
    angle = torch.rand(num_rows, width // 2, generator=generator) * 6
    angle[3:6] = angle[2]
    angle[0] = 0
    return torch.cat((angle.cos(), angle.sin()), dim=1)


@pytest.mark.parametrize(
    ("num_leaves", "num_kv_heads", "group", "dim", "num_queries"),
    [
        (21, 3, 3, 64, 1),
        (16, 1, 4, 128, 1),
        (5, 2, 1, 80, 2),
        (1, 1, 2, 64, 1),
        (18, 1, 7, 64, 3),
        (17, 1, 2, 192, 1),
    ],
)
def test_mass_of_leaves(form, worst, num_leaves, num_kv_heads, group, dim, num_queries):
    """Guards partial blocks of 16 leaves, groups beyond four heads, and the sum: every head's mass is 1."""
    if form == "triton":
        num_leaves, num_queries = min(num_leaves, 5), min(num_queries, 2)
    q, keys, _, _ = index(num_leaves, num_kv_heads, group, dim, num_queries)
    mass = score_leaves(q, keys, None, 0, num_leaves, 0.15)
    assert worst(mass, expected_mass(q, keys, 0.15)) < MASS_BOUND
    assert float(mass.sum()) == pytest.approx(q.shape[0] * q.shape[1], rel=1e-4)


def test_mass_of_listed_columns_and_of_a_range(form, worst):
    """Softmax is over what was scored only; queries may be a slice of fused rows; `out` is filled and returned."""
    q, keys, _, _ = index(12, 2, 2, 64, 2)
    fused = torch.cat((q.flatten(1), torch.full((2, 100), torch.nan)), dim=1)
    q = fused[:, : q[0].numel()].unflatten(1, (-1, 64))
    columns = torch.tensor([9, 2, 11], dtype=torch.int32)
    out = torch.full((3,), torch.nan)
    assert score_leaves(q, keys, columns, 0, 0, 0.15, out=out) is out
    assert worst(out, expected_mass(q, keys[columns.long()], 0.15)) < MASS_BOUND
    mass = score_leaves(q, keys, None, 5, 9, 0.15)
    assert worst(mass, expected_mass(q, keys[5:9], 0.15)) < MASS_BOUND
    assert score_leaves(q, keys, None, 7, 7, 0.15).shape == (0,)


@pytest.mark.parametrize("style", ["split", "interleaved"])
@pytest.mark.parametrize("width", [64, 32])
def test_turned_queries(form, worst, style, width):
    """Guards the turn of each column by its own row, listed or not, alike to its neighbour's or not, partial."""
    num_leaves = 20
    q, keys, nodes, generator = index(num_leaves, 2, 3, 64, 2, seed=4)
    rows, of = angles(9, width, generator), torch.randint(0, 9, (num_leaves,), dtype=torch.int32)
    shared, turns = Turns(rows, of, style), rows[of]
    mass = score_leaves(q, keys, None, 1, num_leaves, 0.15, shared)
    expected = expected_mass(q, keys[1:], 0.15, turns[1:], style)
    assert worst(mass, expected) < MASS_BOUND
    assert worst(expected_mass(q, keys[1:], 0.15), expected) > 2 * MASS_BOUND  # the turns matter here
    columns = torch.tensor([7, 2, 3, 0], dtype=torch.int32)
    mass = score_leaves(q, keys, columns, 0, 0, 0.15, shared)
    chosen = columns.long()
    assert worst(mass, expected_mass(q, keys[chosen], 0.15, turns[chosen], style)) < MASS_BOUND
    alone = score_nodes(q, nodes, 0, len(nodes), 0.15, shared, alpha=0.5)
    assert worst(alone, expected_promise(q, nodes, 0.15, 0.5, turns[::8][: len(nodes)], style)) < 1e-4


def test_scores_far_apart(form):
    """A head whose scores span hundreds must not overflow nor starve the others; no NaN comes out."""
    q, keys, _, _ = index(40 if form != "triton" else 4, 1, 2, 64)
    mass = score_leaves(q, keys, None, 0, len(keys), 30.0)
    assert bool(mass.isfinite().all())
    assert float(mass.sum()) == pytest.approx(2, rel=1e-4)
    assert float(score_leaves(q * 0, keys, None, 0, 4, 1.0)[1]) == pytest.approx(0.5, rel=1e-4)


def expected_promise(q, nodes, scale, alpha, turns=None, style="split"):
    """Float64 softmax over nodes of mean + alpha * (bound - mean)."""
    dim, num_heads = q.shape[2], q.shape[1]
    fields = decode_nodes(nodes, nodes.shape[1] // (3 * dim + 8), dim)
    low, high, mean = (x.double().repeat_interleave(num_heads // x.shape[1], dim=1) for x in fields)
    queries = q.double().expand(len(nodes), *q.shape) if turns is None else turned_queries(q, turns, style)
    bound = torch.maximum(queries * low[:, None], queries * high[:, None]).sum(-1)
    middle = (queries * mean[:, None]).sum(-1)
    return ((middle + alpha * (bound - middle)) * scale).softmax(0).sum((1, 2))


@pytest.mark.parametrize(
    ("num_nodes", "num_kv_heads", "group", "dim"), [(18, 3, 3, 64), (2, 1, 5, 128), (3, 2, 2, 80)]
)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_promise_of_nodes(form, worst, num_nodes, num_kv_heads, group, dim, alpha):
    """Guards the formula from the mean alone to the bound alone, and nodes counted from `first`."""
    q, _, nodes, _ = index(8 * num_nodes, num_kv_heads, group, dim, 2, seed=5)
    promise = score_nodes(q, nodes, 1, num_nodes, 0.1, alpha=alpha)
    assert worst(promise, expected_promise(q, nodes[1:], 0.1, alpha)) < 1e-4


def test_bounds_hold(form):
    """LeoAM's exact choice drops a chunk by its bounds: no key may score outside them."""
    q, keys, nodes, generator = index(16, 2, 2, 64, 2, seed=6)
    turns = angles(16, 64, generator)
    turns = turns[::8].repeat_interleave(8, dim=0).contiguous()  # a node turns as one
    leaves = decode_keys(keys, 2, 64).double().repeat_interleave(2, dim=1)
    scores = torch.einsum("nthd,nhsd->thns", turned_queries(q, turns, "split"), leaves) * 0.2
    lower, upper = leaf_bounds(q, keys, None, 0, 16, 0.2, Turns.each(turns))
    assert lower.shape == (2, 4, 16)
    assert bool((lower <= scores.amin(-1) + 1e-5).all())
    assert bool((upper >= scores.amax(-1) - 1e-5).all())
    lower, upper = node_bounds(q, nodes, 0, 2, 0.2, Turns.each(turns))
    of_node = scores.unflatten(2, (2, 8)).flatten(3)
    slack = 0.2 * 64 * 0.5  # decoded keys may lie half a step outside the keys that the node encloses
    assert bool((lower <= of_node.amin(-1) + slack).all())
    assert bool((upper >= of_node.amax(-1) - slack).all())


@pytest.mark.parametrize("budget", [0, 1, 7, 30, 31, 99])
def test_the_best_columns_ascending(form, budget):
    """Guards the k-th value, the order, the range's ends, and the mass that goes with each column."""
    if form == "triton":
        pytest.skip("interpreted: slow; scoring is tested above")
    q, keys, _, _ = index(40, 2, 2, 64, seed=7)
    scores = score_leaves(q, keys, None, 4, 35, 0.15)
    out = torch.full((50,), -1, dtype=torch.int32)
    mass = torch.full((50,), torch.nan)
    count = select_leaves(q, keys, 4, 35, budget, 0.15, out, mass=mass)
    assert count == min(budget, 31)
    best = scores.topk(count).indices.sort().values
    assert out[:count].tolist() == (best + 4).tolist()
    assert out[count:].eq(-1).all()
    assert torch.allclose(mass[:count], scores[best], rtol=1e-5)


def test_equal_scores_fill_the_budget(form):
    """All alike (a query of zeros): exactly `budget` columns, none twice; a query of NaN does not run away."""
    if form == "triton":
        pytest.skip("interpreted: slow; scoring is tested above")
    q, keys, nodes, _ = index(48, 1, 2, 64)
    out = torch.empty(48, dtype=torch.int32)
    for query in (q * 0, q * torch.nan):
        count = select_leaves(query, keys, 0, 48, 13, 0.15, out, nodes=nodes, max_candidates=24)
        assert count == 13
        assert len(set(out[:13].tolist())) == 13
        assert 0 <= int(out[:13].min()) <= int(out[:13].max()) < 48


def test_the_cascade(form):
    """Nodes first: only their columns, those in no whole node and the extra ones compete."""
    if form == "triton":
        pytest.skip("interpreted: slow; scoring is tested above")
    q, keys, nodes, _ = index(100, 2, 3, 64, seed=8)
    first, last, budget = 3, 99, 20
    promise = score_nodes(q, nodes, 1, 12, 0.15)
    best_nodes = set((promise.topk(4).indices + 1).tolist())
    extra = torch.tensor([50, 2, 98, 99, 51], dtype=torch.int32)
    candidates = [
        c for c in range(first, last) if c // 8 in best_nodes or c < 8 or c >= 96 or c in extra.tolist()
    ]
    columns = candidate_columns(q, nodes, first, last, 0.15, 32, extra)
    assert columns.tolist() == candidates
    scores = score_leaves(q, keys, torch.tensor(candidates, dtype=torch.int32), 0, 0, 0.15)
    expected = [candidates[i] for i in scores.topk(budget).indices.sort().values.tolist()]
    out = torch.empty(budget, dtype=torch.int32)
    count = select_leaves(
        q, keys, first, last, budget, 0.15, out, nodes=nodes, max_candidates=32, extra=extra
    )
    assert out[:count].tolist() == expected
    wide = select_leaves(q, keys, first, last, budget, 0.15, out, nodes=nodes, max_candidates=96)
    assert wide == budget  # as many candidates as columns: nothing is skipped
    every = score_leaves(q, keys, None, first, last, 0.15).topk(budget).indices.sort().values + first
    assert out.tolist() == every.tolist()
    assert select_leaves(q, keys, 8, 12, 3, 0.15, out, nodes=nodes, max_candidates=2) == 3  # no whole node


def test_what_is_attended_anyway_takes_part_in_the_softmax(form, worst):
    """Guards the share: a head that looks at sink and window only must not weigh in as much as any other."""
    if form == "triton":
        pytest.skip("interpreted: slow; scoring is tested above")
    q, keys, nodes, generator = index(60, 2, 3, 64, 2, seed=9)
    turns = angles(60, 64, generator)
    around = torch.tensor([0, 58, 59, 57], dtype=torch.int32)
    first, last, budget = 3, 55, 9
    ranks = torch.cat((torch.arange(first, last), around.long()))
    expected = expected_mass(q, keys[ranks], 0.15, turns[ranks])[: last - first]
    mass = score_among(q, keys, None, around, first, last, 0.15, Turns.each(turns))
    assert worst(mass, expected) < MASS_BOUND
    out, got = torch.full((20,), -1, dtype=torch.int32), torch.full((20,), torch.nan)
    count = select_leaves(
        q, keys, first, last, budget, 0.15, out, mass=got, around=around, turns=Turns.each(turns)
    )
    best = mass.topk(budget).indices.sort().values
    assert count == budget
    assert out[:count].tolist() == (best + first).tolist()
    assert torch.allclose(got[:count], mass[best], rtol=1e-5)
    assert out[count:].eq(-1).all()
    how = {"nodes": nodes, "max_candidates": 16, "extra": torch.tensor([30, 31], dtype=torch.int32)}
    columns = candidate_columns(q, nodes, first, last, 0.15, 16, how["extra"])
    mass = score_among(q, keys, columns, around, first, last, 0.15)
    count = select_leaves(q, keys, first, last, budget, 0.15, out, mass=got, around=around, **how)
    best = mass.topk(budget).indices.sort().values
    assert out[:count].tolist() == columns[best].tolist()
    assert torch.allclose(got[:count], mass[best], rtol=1e-5)


def test_a_head_that_looks_nearby_gives_way(form):
    """Guards the order: without the window one head's far favourite ties with another's; its share decides."""
    if form == "triton":
        pytest.skip("interpreted: slow; scoring is tested above")
    keys = torch.zeros(20, 2, 1, 16, 64)
    keys[5, :, :, :, 0] = 4.0  # what the first head likes of the far ones
    keys[9, :, :, :, 1] = 3.0  # what the second likes
    keys[19, :, :, :, 0] = 12.0  # nearby, the first head likes this far more
    q = torch.zeros(1, 2, 64)
    q[0, 0, 0] = q[0, 1, 1] = 1.0
    with forced("reference"):
        rows = pack_keys(keys.bfloat16(), torch.arange(20, dtype=torch.int32))
    out = torch.empty(1, dtype=torch.int32)
    assert select_leaves(q, rows, 1, 19, 1, 1.0, out) == 1
    assert out.tolist() == [5]
    near = torch.tensor([0, 19], dtype=torch.int32)
    assert select_leaves(q, rows, 1, 19, 1, 1.0, out, around=near) == 1
    assert out.tolist() == [9]
