"""One token through several layers at once, against the reference forms of the single operations."""

from dataclasses import replace

import pytest
import torch

import edgekv_kernels
from edgekv_kernels import (
    Choosing,
    LayerWeights,
    Matrix,
    TokenPass,
    Turns,
    after_attend_,
    before_attend,
    nodes_of_keys,
    pack_keys,
    pass_layers_,
    score_among,
    score_nodes,
)
from edgekv_kernels.choosing import scan_turn

LAYERS, COLUMNS, HEADS, KV_HEADS, DIM, HIDDEN, FFN = 3, 40, 6, 2, 32, 160, 96
SCALE = DIM**-0.5


@pytest.fixture(autouse=True)
def fewer_programs(request, monkeypatch):
    """Triton's interpreter needs milliseconds for each program, which is a kv head of a column, whatever it
    computes. Fewer columns cross the same edges: there are more than are kept, searched or left by a scan, of two
    heads, and a group of heads that is no power of two.
    """
    if "form" in request.fixturenames and request.getfixturevalue("form") == "triton":
        monkeypatch.setitem(globals(), "COLUMNS", 20)


def layer():
    """Small weights, so that nothing overflows in layers that follow each other."""

    def matrix(n, k):
        return Matrix((torch.randn(n, k) / k**0.5).bfloat16())

    return LayerWeights(
        attn_norm=torch.rand(HIDDEN),
        qkv=(matrix((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),),
        q_norm=None,
        k_norm=None,
        attn_out=matrix(HIDDEN, HEADS * DIM),
        ffn_norm=torch.rand(HIDDEN),
        gate_up=(matrix(2 * FFN, HIDDEN),),
        down=matrix(HIDDEN, FFN),
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        eps=1e-5,
        rope_style="split",
    )


def token_pass(*, budget, turned=False, reach=None, max_candidates=1000, around=1):
    """Column c of layer i in slot i * COLUMNS + c; the last column is being written, its sixth token now."""
    torch.manual_seed(3)
    pool = (2 * torch.randn(LAYERS * COLUMNS, 2, KV_HEADS, 16, DIM)).bfloat16()
    slots = torch.arange(LAYERS * COLUMNS, dtype=torch.int32).view(LAYERS, COLUMNS)
    choosing = None
    fixed = torch.arange(COLUMNS, dtype=torch.int32)
    if budget:
        fixed = torch.tensor([0, COLUMNS - 3, COLUMNS - 2, COLUMNS - 1], dtype=torch.int32)
        with edgekv_kernels.forced("reference"):
            keys = torch.stack([pack_keys(pool, slots[i]) for i in range(LAYERS)])
        scanned = torch.zeros(LAYERS, max_candidates + 2, dtype=torch.int32)
        kept = torch.zeros(LAYERS, 2 + 2 * budget + 3, dtype=torch.int32)
        near = torch.tensor([0, COLUMNS - 3] + [COLUMNS - 2] * around, dtype=torch.int32)
        choosing = Choosing(keys, 1, COLUMNS - 3, budget, scanned, kept, around=near)
    angles, of = torch.rand(9, DIM // 2), torch.randint(0, 9, (COLUMNS,), dtype=torch.int32)
    return TokenPass(
        pool=pool,
        where=slots.clone(),
        written=pool,
        writes=slots[:, -1:].contiguous(),
        offset=5,
        fixed=fixed,
        num_missing=10,
        scale=SCALE,
        turns=Turns(torch.cat([angles.cos(), angles.sin()], dim=1), of) if turned else None,
        choosing=choosing,
        reach=reach or (lambda layer, columns: pytest.fail(f"nothing is away, {layer}, {columns}")),
    )


def inputs():
    torch.manual_seed(4)
    layers = [layer() for _ in range(LAYERS)]
    angle = torch.rand(1, DIM // 2)
    return torch.randn(1, HIDDEN), layers, angle.cos(), angle.sin()


def layer_by_layer(attend):
    """Hidden state by the single operations. In the form that is tested: forms may choose differently where two
    columns are nearly as good.
    """
    hidden, layers, cos, sin = inputs()
    for index, one in enumerate(layers):
        q, k, v = before_attend(hidden, one, cos, sin)
        after_attend_(hidden, attend(index, q, k, v), one)
    return hidden


def expected(attend):
    """The same by the reference forms."""
    with edgekv_kernels.forced("reference"):
        return layer_by_layer(attend)


def plainly(form, attend):
    """What a pass in the form has to come to. Triton's passes are the plain form: they would be compared with
    themselves.
    """
    return expected(attend) if form == "triton" else layer_by_layer(attend)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("budget", [0, 7, 1000])
def test_all_layers_at_once(form, worst, budget, turned, threads):
    """Guards the choice, turned columns, a last column with empty tokens, threads that share every phase."""
    budget = min(budget, COLUMNS - 4)
    plain, attend = token_pass(budget=budget, turned=turned), token_pass(budget=budget, turned=turned)
    wanted = plainly(form, plain) if 0 < budget < COLUMNS - 4 else expected(plain)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        hidden, layers, cos, sin = inputs()
        assert pass_layers_(hidden, layers, cos, sin, attend) is hidden
    finally:
        torch.set_num_threads(before)
    for index in range(LAYERS):
        assert torch.equal(attend.columns(index), plain.columns(index))
        assert len(attend.columns(index)) == budget + len(attend.fixed)
    assert torch.equal(attend.counts, plain.counts)
    assert worst(hidden, wanted) < 1e-3
    assert (
        worst(attend.pool[attend.writes.flatten().long()], plain.pool[plain.writes.flatten().long()]) < 1e-2
    )


@pytest.mark.parametrize("budget", [7, 1000])
def test_nothing_is_attended_twice(form, worst, budget):
    """Guards columns that a question names: they lie among those to choose from, and one that is chosen as well
    would count double.
    """
    budget = min(budget, COLUMNS - 4)
    passes = [token_pass(budget=budget) for _ in range(2)]
    plainly(form, passes[0])
    named = passes[0].columns(1)[:3]  # best ones of a layer, so that they are chosen
    for each in passes:
        each.choosing.kept.zero_()
        each.measured.zero_()
        each.fixed = torch.cat([each.fixed[:1], named, each.fixed[1:]])
        each.listed = torch.empty(LAYERS, budget + len(each.fixed), dtype=torch.int32)
        each.native = None
    wanted = plainly(form, passes[0])
    hidden = inputs()[0]
    pass_layers_(hidden, *inputs()[1:], passes[1])
    for index in range(LAYERS):
        columns = passes[1].columns(index)
        assert torch.equal(columns, passes[0].columns(index))
        assert len(columns.unique()) == len(columns)
        assert torch.equal(columns[passes[1].counts[index] :], passes[1].fixed)
    assert passes[1].counts.tolist() == [min(budget, COLUMNS - 4 - 3)] * LAYERS, "others take their places"
    assert passes[1].measured.tolist() == pytest.approx(passes[0].measured.tolist(), abs=1e-3)
    assert worst(hidden, wanted) < 1e-3


def test_what_is_attended_anyway_is_weighed_too(form):
    """Guards that the columns around reach the choice at all: one that counts ten times changes it."""
    chosen = {}
    for around in (0, 10):
        plain, attend = (token_pass(budget=6, around=around) for _ in range(2))
        plainly(form, plain)
        pass_layers_(*inputs(), attend)
        chosen[around] = [attend.columns(index).tolist() for index in range(LAYERS)]
        assert chosen[around] == [plain.columns(index).tolist() for index in range(LAYERS)]
    assert chosen[0] != chosen[10]


def test_only_what_a_scan_left_is_searched(form):
    """Guards the sieve: between two scans columns that it dropped must not be chosen, nor ones of another layer."""
    passes = [token_pass(budget=4, max_candidates=8) for _ in range(2)]
    step = (COLUMNS - 10) // 8
    left = [list(range(2 + index, 2 + index + 8 * step, step)) for index in range(LAYERS)]
    for each in passes:
        each.choosing, each.phase = replace(each.choosing, scan_period=1000), 1
        for index in range(LAYERS):
            each.choosing.scanned[index] = torch.tensor([8, COLUMNS - 5, *left[index]])
    plainly(form, passes[0])
    pass_layers_(*inputs(), passes[1])
    for index in range(LAYERS):
        assert torch.equal(passes[1].columns(index), passes[0].columns(index))
        chosen = passes[1].columns(index)[:4].tolist()
        assert set(chosen) <= {*left[index], COLUMNS - 5, COLUMNS - 4}
        assert passes[1].choosing.scanned[index].tolist() == [8, COLUMNS - 5, *left[index]]


@pytest.mark.parametrize("max_candidates", [8, 1000])
def test_the_best_are_kept(form, max_candidates):
    """Guards scanning in one of seven passes and searching in one of four: what was kept must be the layer's own,
    layers must take turns, and new columns come along.
    """
    passes = [token_pass(budget=4, max_candidates=max_candidates, turned=True) for _ in range(2)]
    ends, scans, measured = [], [], 0
    for phase in range(9):
        for each in passes:
            last = COLUMNS - 9 + phase // 2
            each.choosing = replace(each.choosing, period=4, scan_period=7, last=last)
            each.phase, each.native = phase, None
        plainly(form, passes[0])
        pass_layers_(*inputs(), passes[1])
        plain, attend = passes
        for index in range(LAYERS):
            assert torch.equal(attend.columns(index), plain.columns(index))
            assert 6 <= attend.choosing.kept[index, 0] <= 11
            assert set(attend.columns(index)[:4].tolist()) <= {
                *attend.choosing.kept[index, 2:].tolist(),
                *range(ends[index] if ends else last, last),
            }
        assert torch.equal(attend.choosing.kept, plain.choosing.kept)
        assert torch.equal(attend.choosing.scanned, plain.choosing.scanned)
        is_long = max_candidates == 8
        turns = [is_long and (phase == 0 or (scan_turn(i, 7) + phase) % 7 == 0) for i in range(LAYERS)]
        found = [last if turns[i] or phase == 0 or (i + phase) % 4 == 0 else ends[i] for i in range(LAYERS)]
        ends = found
        scans = [last if turns[i] else (scans or [0] * LAYERS)[i] for i in range(LAYERS)]
        assert attend.choosing.kept[:, 1].tolist() == ends
        assert attend.choosing.scanned[:, 1].tolist() == scans
        assert attend.choosing.scanned[:, 0].tolist() == [8 * is_long] * LAYERS
        assert torch.allclose(attend.measured, plain.measured, atol=1e-3)
        ranked_all = turns if is_long else [phase == 0 or (i + phase) % 4 == 0 for i in range(LAYERS)]
        assert attend.measured[1] - measured == sum(ranked_all)
        measured = int(attend.measured[1])


def test_a_layer_that_knows_nothing_goes_by_nodes(form):
    """Guards an answer's first token behind a long conversation, where scans of all layers took as long as five
    tokens: only layers whose turn it is rank everything, and only they tell the share that is kept.
    """
    passes, found = [token_pass(budget=4, max_candidates=8, turned=True) for _ in range(2)], {}
    c = passes[0].choosing
    with edgekv_kernels.forced("reference"):
        nodes = torch.stack([nodes_of_keys(keys[: COLUMNS // 8 * 8], KV_HEADS, DIM) for keys in c.keys])
    edges = {*range(1, 8), *range((COLUMNS - 3) // 8 * 8, COLUMNS - 3)}
    hidden, layers, cos, sin = inputs()
    for each in passes:
        each.choosing = replace(each.choosing, nodes=nodes, num_promising=1, period=3, scan_period=1000)
        each.phase = 1  # the turn of layer 2
    for index, one in enumerate(layers):
        q, k, v = before_attend(hidden, one, cos, sin)
        promise = score_nodes(q, nodes[index], 1, (COLUMNS - 3) // 8, SCALE, passes[0].turns)
        best = 1 + int(promise.argmax())
        found[index] = edges | set(range(8 * best, 8 * best + 8))
        after_attend_(hidden, passes[0](index, q, k, v), one)
    pass_layers_(*inputs(), passes[1])
    for phase in (1, 2):
        for index in range(LAYERS):
            assert torch.equal(passes[1].columns(index), passes[0].columns(index))
        plain, attend = (each.choosing for each in passes)
        assert torch.equal(attend.scanned, plain.scanned)
        assert torch.equal(attend.kept, plain.kept)
        assert attend.scanned[:, 0].tolist() == [8] * LAYERS
        for index in (0, 1):
            assert set(attend.scanned[index, 2:].tolist()) <= found[index]
        assert passes[1].measured.tolist() == pytest.approx(passes[0].measured.tolist(), abs=1e-3)
        assert passes[1].measured[1] == 1
        if phase == 1:
            for each in passes:
                each.phase, each.native = 2, None  # all know something: layer 1 searches what was left
            plainly(form, passes[0])
            pass_layers_(*inputs(), passes[1])


@pytest.mark.parametrize(("layers", "period"), [(30, 256), (16, 128), (32, 64)])
def test_layers_that_scan_one_after_the_other_lie_apart(layers, period):
    """Guards the share of attention that an answer says it kept: a quarter of the tokens of a period must scan
    layers of all depths, as a shallow one keeps half of what a deep one does; and no token scans them all.
    """
    turns = [scan_turn(layer, period) for layer in range(layers)]
    assert max(turns.count(turn) for turn in turns) <= 2
    for start in range(0, period, 5):
        some = [i for i in range(layers) if (turns[i] - start) % period < period // 4]
        assert layers // 4 - 2 <= len(some) <= layers // 4 + 3
        assert max(some) - min(some) >= layers // 2, some


def test_the_share_of_attention_that_is_kept(form):
    """Guards what an answer says of itself: what is not chosen is lost; leaves that are away count in full."""
    passes = [token_pass(budget=4, max_candidates=8, turned=True, around=1) for _ in range(2)]
    for each in passes:
        each.where[:, ::3] = -1
        each.choosing = replace(each.choosing, away=0.5)
        each.reach = lambda layer, columns, where=each.where: where.__setitem__(layer, torch.arange(COLUMNS))
    kept, attend = 0.0, passes[0]
    hidden, layers, cos, sin = inputs()
    for index, one in enumerate(layers):
        q, k, v = before_attend(hidden, one, cos, sin)
        after_attend_(hidden, attend(index, q, k, v), one)
        c = attend.choosing
        mass = score_among(q, c.keys[index], None, c.around, c.first, c.last, SCALE, attend.turns)
        chosen = attend.columns(index)[: attend.counts[index]].long() - c.first
        kept += 1 - float(mass.sum() - mass[chosen].sum()) / q.shape[1]
    assert attend.measured.tolist() == pytest.approx([kept, LAYERS], abs=1e-4)
    pass_layers_(*inputs(), passes[1])
    assert passes[1].measured.tolist() == pytest.approx([kept, LAYERS], abs=1e-3)
    assert 0 < kept < LAYERS


def test_a_leaf_that_is_away_has_to_weigh_more(form):
    """Guards reads for the sake of leaves that hardly count: at a weight of 0 none is chosen that is away."""
    passes = [token_pass(budget=7) for _ in range(2)]
    plainly(form, passes[0])
    away = passes[0].columns(1)[:3].long()
    for each in passes:
        each.choosing.kept.zero_()
        each.choosing = replace(each.choosing, away=0.0)
        each.where[1, away] = -1
    plainly(form, passes[0])
    pass_layers_(*inputs(), passes[1])
    for index in range(LAYERS):
        assert torch.equal(passes[1].columns(index), passes[0].columns(index))
    assert not set(passes[1].columns(1).tolist()) & set(away.tolist())
    assert set(away.tolist()) <= set(passes[1].choosing.kept[1, 2:].tolist()), "they are ranked again"


def test_a_leaf_that_is_away_is_reached_for(form, worst):
    """Guards a pass that went on with the wrong slot, attended a layer twice or appended its token twice."""
    away, reached = 17, []
    plain = token_pass(budget=0)
    wanted = expected(plain)
    attend = token_pass(budget=0)
    before = attend.where.clone()
    attend.where[1:, away] = -1

    def reach(index, columns):
        reached.append((index, columns.tolist()))
        attend.where[index] = before[index]

    hidden, layers, cos, sin = inputs()
    pass_layers_(hidden, layers, cos, sin, replace_reach(attend, reach))
    assert worst(hidden, wanted) < 1e-3
    assert reached == [(1, list(range(COLUMNS))), (2, list(range(COLUMNS)))]


def replace_reach(attend, reach):
    attend.reach = reach
    return attend


def test_what_reaching_raises_ends_the_pass(form):
    """Guards threads left waiting when a leaf cannot be read: the next pass would never end."""

    def broken(index, columns):
        raise OSError("no disk")

    attend = token_pass(budget=0, reach=broken)
    attend.where[1, 3] = -1
    with pytest.raises(OSError, match="no disk"):
        pass_layers_(*inputs(), attend)
    again = token_pass(budget=0)
    pass_layers_(*inputs(), again)
    assert again.counts.tolist() == [0] * LAYERS


def test_layers_are_checked():
    """A pool of another shape must not be read as this one's."""
    attend = token_pass(budget=0)
    with pytest.raises(AssertionError):
        pass_layers_(*inputs(), replace(attend, pool=attend.pool[:, :, :1].contiguous()))
