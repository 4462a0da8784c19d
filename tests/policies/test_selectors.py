"""Methods of selection on small tensors: what is planted is found, bounds are exact, memories are forgotten."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import edgekv_kernels as kernels
from edgekv.config import FIELDS, Config
from edgekv.policies.selection import cascade
from edgekv.policies.selection.cascade import CANDIDATES_BESIDE, KEPT_BESIDE, Cascade
from edgekv.policies.selection.heavy import Heavy
from edgekv.policies.selection.leoam import Leoam
from edgekv.policies.selection.methods import SELECTORS
from edgekv.policies.selection.selector import Step
from edgekv.policies.selection.sentence import Sentence

HEADS, GROUP, DIM = 2, 2, 16
SCALE = DIM**-0.5


class Made:
    """Abstracts of made-up keys; those in `absent` count as on disk until they are asked for."""

    def __init__(self, keys, absent=()):
        slots = torch.arange(len(keys), dtype=torch.int32)
        pool = torch.stack([keys, keys], 1).bfloat16()
        self._rows = kernels.pack_keys(pool, slots)
        whole = self._rows[: len(keys) // 8 * 8]
        self._nodes = kernels.nodes_of_keys(whole, HEADS, DIM) if len(whole) else self._rows[:0]
        self.absent = set(absent)
        self.true = pool[:, 0].float()

    def keys(self, layer):
        rows = self._rows.clone()
        rows[list(self.absent)] = 255
        return rows

    def nodes(self, layer):
        return self._nodes

    @property
    def all_keys(self):
        return self.keys(0)[None]

    @property
    def all_nodes(self):
        return self._nodes[None]

    @property
    def num_absent(self):
        return len(self.absent)

    def ensure(self, layer, columns):
        self.absent -= set(np.asarray(columns).tolist())


def planted(num_columns, winners, *, seed=0, strength=3.0):
    """Keys among which every head's query finds `winners`, and a maker of such queries."""
    generator = torch.Generator().manual_seed(seed)
    way = torch.randn(HEADS, DIM, generator=generator)
    keys = torch.randn(num_columns, HEADS, 16, DIM, generator=generator) * 0.5
    keys[winners] += strength * way[:, None] / way.norm(dim=-1)[:, None, None]

    def queries(count=1):
        q = way.repeat_interleave(GROUP, 0) * 2
        return q + 0.3 * torch.randn(count, HEADS * GROUP, DIM, generator=generator)

    return keys, queries


def step_of(abstracts, q, columns, num_columns, *, layer=0, **more):
    full = torch.einsum("thgd,nhsd->thgns", q.unflatten(1, (HEADS, GROUP)), abstracts.true) * SCALE
    mass = full.flatten(3).softmax(-1).unflatten(3, (-1, 16)).sum((0, 1, 2, 4))
    out = torch.full((num_columns + 3,), -7, dtype=torch.int32)
    more.setdefault("attended", lambda: mass[columns.start : columns.stop])
    return Step(layer, q, SCALE, columns, num_columns, abstracts, out, **more)


def chosen(selector, step):
    count = selector.select(step)
    got = step.out[:count].tolist()
    assert count <= step.num_columns
    assert len(set(got)) == count
    assert set(got) <= set(step.columns)
    assert step.out[count:].eq(-7).all() or count < step.num_columns, "wrote beyond what it may"
    return set(got)


def test_options_and_methods_agree():
    """Guards the option: a name that is understood and not there fails after the model was loaded."""
    assert "selection" in FIELDS
    for name in SELECTORS:
        assert Config().replace({"selection": name}).selection == name


@pytest.mark.parametrize("name", [name for name in SELECTORS if name != "window"])
@pytest.mark.parametrize("queries", [1, 5])
def test_planted_winners_are_found(name, queries):
    """Guards the arithmetic of each method: heads mixed up, columns off by the range's first, nodes by 8."""
    winners = [3, 9, 10, 41, 76]
    keys, make = planted(90, winners)
    step = step_of(Made(keys), make(queries), range(1, 86), 10)
    assert set(winners) <= chosen(SELECTORS[name](), step)


def needle_among_decoys():
    """One leaf of 104 answers the query. The nodes of all others promise more: each of their keys is far out in one
    dimension, so that the bound of eight of them together is high and none of them scores.
    """
    keys = torch.zeros(104, HEADS, 16, DIM)
    for column in range(104):
        at = column % 8
        keys[column, ..., at], keys[column, ..., at + 8] = 6.0, -6.0
    keys[40:48] = 0.0
    keys[43] = 0.4
    return keys, torch.full((1, HEADS * GROUP, DIM), 2.0)


def test_a_needle_in_an_unpromising_node():
    """A passkey lay among columns whose nodes promised little, and was lost beyond 8,192 tokens: a question ranks
    every column, and the tokens after it search what that left. A block of a long prompt goes by the nodes.
    """
    keys, q = needle_among_decoys()
    abstracts, selector = Made(keys), Cascade(max_candidates=16)
    step = step_of(abstracts, q, range(1, 97), 4)
    assert 43 not in chosen(selector, replace(step, is_block=True))
    assert 43 in chosen(selector, step)
    choosing = selector.choosing(abstracts, step.columns, 4, torch.empty(0, dtype=torch.int32))
    assert choosing.max_candidates == 16
    assert choosing.scanned[0, :2].tolist() == [16, 97]
    assert 43 in choosing.scanned[0, 2:].tolist()
    later = step_of(abstracts, q, range(1, 99), 4)
    assert 43 in chosen(selector, later)
    assert selector.choosing(abstracts, step.columns, 4, step.around).scanned[0, 1] == 97, "not again"


def test_fewer_are_ranked_beside_what_is_named():
    """Guards a token's time: ranking for the few columns beside the named ones took as long as for a whole budget.
    And the next question's quality: where that names nothing, its answer ranks as many as ever.
    """
    abstracts = Made(torch.zeros(700, HEADS, 16, DIM))
    nothing = torch.empty(0, dtype=torch.int32)
    selector, columns = Cascade(words=set), range(1, 680)
    ids = [5] * 16 * 700
    ids[16 * 300] = 7

    def sizes(num_columns):
        choosing = selector.choosing(abstracts, columns, num_columns, nothing)
        return choosing.max_candidates, choosing.kept.shape[1] - num_columns - 3, choosing.nodes is None

    assert sizes(16) == (512, 128, True)
    assert 300 in selector.named(ids, [7], columns, 8)
    assert sizes(16) == (CANDIDATES_BESIDE, KEPT_BESIDE, False)
    assert sizes(40) == (CANDIDATES_BESIDE, 80, False), "twice what is chosen at least"
    assert not len(selector.named(ids, [8], columns, 8))
    assert sizes(40) == (512, 128, True)
    assert len(selector.named(ids, [7], columns, 8))
    step = step_of(abstracts, torch.randn(3, HEADS * GROUP, DIM), columns, 16)
    chosen(selector, step)
    assert sizes(16)[2], "a question that was answered by mass"
    assert len(selector.named(ids, [7], columns, 8))
    selector.reset()
    assert sizes(16)[2], "another conversation"


@pytest.mark.parametrize(
    ("columns", "budget", "period"), [(512, 64, 1), (513, 64, 4), (900, 500, 1), (3000, 64, 8)]
)
def test_each_token_searches_where_a_search_takes_in_all(columns, budget, period):
    """Guards the distance to exact attention, most of which is made by the tokens between two searches."""
    abstracts = Made(torch.zeros(16, HEADS, 16, DIM))
    choosing = Cascade().choosing(abstracts, range(1, 1 + columns), budget, torch.empty(0, dtype=torch.int32))
    assert choosing.period == period


def test_an_answer_does_not_search_an_older_questions_scan():
    """A block that went by nodes left the scan of the turn before to be searched."""
    keys, q = needle_among_decoys()
    abstracts, selector = Made(keys), Cascade(max_candidates=16)
    step = step_of(abstracts, q.expand(3, -1, -1), range(1, 97), 4)
    chosen(selector, step)
    chosen(selector, replace(step, is_block=True))
    choosing = selector.choosing(abstracts, step.columns, 4, step.around)
    assert choosing.scanned[0, :2].tolist() == [0, 0]
    assert choosing.kept[0, 0] == 0


class Deep:
    """Abstracts of ten layers with the same keys, `absent` on disk in each."""

    def __init__(self, keys, absent):
        self.layers = [Made(keys, absent) for _ in range(10)]
        self.true = self.layers[0].true

    def keys(self, layer):
        return self.layers[layer].keys(0)

    def nodes(self, layer):
        return self.layers[layer].nodes(0)

    @property
    def all_keys(self):
        return torch.stack([layer.keys(0) for layer in self.layers])

    @property
    def num_absent(self):
        return sum(layer.num_absent for layer in self.layers)

    def ensure(self, layer, columns):
        self.layers[layer].ensure(0, columns)


def test_layers_that_scan_lend_what_they_found(monkeypatch):
    """Guards a question after a restart: all layers went by nodes, and numbers that were found before it were lost.
    If every layer read its keys, a tenth of a long conversation would be read before the first token."""
    monkeypatch.setattr(cascade, "LENDERS_BYTES", 0)
    keys, q = needle_among_decoys()
    abstracts, selector = Deep(keys, range(104)), Cascade(max_candidates=16)
    found = {}
    for turn in range(2):  # what was lent in one turn is not offered to the first layers of the next
        selector.reset()
        for layer in range(10):
            step = step_of(abstracts, q.expand(3, -1, -1), range(1, 97), 4, layer=layer)
            found[turn, layer] = 43 in chosen(selector, step)
    for turn in range(2):
        assert [layer for layer in range(10) if found[turn, layer]] == [4, 5, 6, 7, 8, 9]
    assert [layer for layer in range(10) if not abstracts.layers[layer].absent & set(range(1, 97))] == [4, 6]
    assert set(range(40, 48)).isdisjoint(abstracts.layers[5].absent), "the needle's node"
    for made in abstracts.layers:
        made.absent.clear()
    choosing = selector.choosing(abstracts, step.columns, 4, step.around)
    assert [layer for layer in range(10) if choosing.scanned[layer, 0] == 0] == [0, 1, 2, 3, 5, 7, 8, 9]


def test_how_many_layers_lend():
    """Guards both ends: of a short conversation all may lend, of the longest two have to."""
    assert cascade.lenders(30, 13 << 20) == [14, 18]
    assert cascade.lenders(30, 3 << 20) == [10, 14, 16, 18]
    assert cascade.lenders(30, 1 << 20) == [10, 12, 14, 16, 18, 20]
    assert cascade.lenders(1, 1) == [0]


@pytest.mark.parametrize("name", SELECTORS)
def test_few_or_odd_columns(name):
    """Guards the edges: fewer columns than the budget, no whole node, ranges that grow between steps."""
    keys, make = planted(40, [2])
    abstracts, selector = Made(keys), SELECTORS[name]()
    assert chosen(selector, step_of(abstracts, make(), range(1, 5), 8)) == {1, 2, 3, 4}
    assert len(chosen(selector, step_of(abstracts, make(), range(1, 7), 3))) == 3
    assert len(chosen(selector, step_of(abstracts, make(), range(1, 39), 8))) == 8
    selector.reset()
    assert len(chosen(selector, step_of(abstracts, make(3), range(1, 21), 8))) == 8
    assert len(chosen(selector, step_of(abstracts, make(), range(1, 17), 8))) == 8


@pytest.mark.parametrize("name", [name for name in SELECTORS if name not in ("window", "oracle")])
def test_keys_on_disk_are_asked_for(name):
    """Guards reading: keys that have not come yet are bytes of nothing, and rank anything first."""
    winners = [3, 30, 66]
    keys, make = planted(72, winners, seed=4)
    abstracts = Made(keys, absent=range(8, 72))
    selector = SELECTORS[name]()
    assert set(winners) <= chosen(selector, step_of(abstracts, make(), range(1, 70), 6))


RANKED = [name for name in SELECTORS if name not in ("window", "quest", "oracle")]


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("absent", [(), range(4, 60)])
def test_heads_that_look_nearby_give_way(name, absent):
    """Guards the softmax: a head whose attention is all in the window must not choose far columns.

    The first kv head's queries like column 20, and 55 in the window far more; the second's like column 30.
    """
    keys = torch.zeros(60, HEADS, 16, DIM)
    keys[20, 0, :, 0], keys[55, 0, :, 0], keys[30, 1, :, 1] = 24.0, 48.0, 20.0
    q = torch.zeros(1, HEADS * GROUP, DIM)
    q[:, :GROUP, 0] = q[:, GROUP:, 1] = 1.0
    alone = step_of(Made(keys, absent), q, range(1, 50), 1)
    if name != "leoam":  # which measures each head by what it happens to know first
        assert chosen(SELECTORS[name](), alone) == {20}
    around = torch.tensor([0, 55, 56], dtype=torch.int32)
    assert chosen(SELECTORS[name](), step_of(Made(keys, absent), q, range(1, 50), 1, around=around)) == {30}


def brute_force(step, seeds):
    """Weights of all columns in float64, as `leoam` defines them."""
    scores = kernels.leaf_scores(step.q, step.abstracts.keys(0), step.scale).double()
    norm = scores[:, :, seeds].flatten(2).logsumexp(-1)
    return (scores - norm[:, :, None, None]).exp().sum((0, 1, 3))[step.columns.start : step.columns.stop]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_leoam_is_exact(seed, spread):
    """Guards the bounds: one that is too tight drops a winner; and at little spread nothing would be skipped."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(25, HEADS, 1, DIM, generator=generator)
    noise = torch.randn(200, HEADS, 16, DIM, generator=generator) * spread
    abstracts = Made(centres.repeat_interleave(8, 0) + noise)
    selector = Leoam()
    columns = range(1, 195)
    for _ in range(3):
        q = torch.randn(2, HEADS * GROUP, DIM, generator=generator) * 3
        step = step_of(abstracts, q, columns, 30)
        seeds = selector._seeds(step, 30)
        got = chosen(selector, step)
        want = brute_force(step, seeds)
        least = want[[column - 1 for column in got]].min()
        others = [column for column in columns if column not in got]
        assert len(got) == 30
        assert want[[column - 1 for column in others]].max() <= least * (1 + 1e-4)
    assert selector.num_weighed <= selector.num_seen
    if spread < 0.1:
        assert selector.num_weighed < 0.7 * selector.num_seen


def test_leoam_takes_what_is_certain_without_looking():
    """Guards the lower bounds: where a whole node must win, none of its leaves has to be weighed."""
    keys, make = planted(128, list(range(64, 72)), strength=12.0)
    abstracts = Made(keys)
    weighed = []
    abstracts.ensure = lambda layer, columns: weighed.extend(columns.tolist())
    abstracts.absent = {127}  # so that what is weighed is asked for
    selector = Leoam()
    selector._winners[0] = torch.arange(1, 9)
    assert set(range(64, 72)) <= chosen(selector, step_of(abstracts, make(), range(1, 120), 8))
    assert weighed
    assert not set(weighed) & set(range(64, 72))


def test_heavy_keeps_what_was_heavy_and_what_is_recent():
    """Guards the sums: without decay an old winner stays for ever, without sums it goes at once."""
    keys, make = planted(60, [20, 21])
    abstracts, selector = Made(keys), Heavy(decay=0.9)
    assert chosen(selector, step_of(abstracts, make(), range(1, 50), 4)) == {20, 21, 48, 49}
    elsewhere = torch.zeros(1, HEADS * GROUP, DIM)  # attends to everything alike
    assert chosen(selector, step_of(abstracts, elsewhere, range(1, 52), 4)) == {20, 21, 50, 51}
    assert selector.worth().topk(2).indices.sort().values.tolist() == [20, 21]
    before = float(selector.worth()[20])
    selector.select(step_of(abstracts, elsewhere, range(1, 52), 4))
    assert float(selector.worth()[20]) == pytest.approx(before * 0.9 + 4 / 51, rel=0.1)
    selector.reset()
    assert len(selector.worth()) == 0


def test_a_sentence_asks_with_its_mean_and_begins_anew():
    """Guards the mean: a query of the sentence before must not count, one of this sentence must."""
    keys, make = planted(60, [20])
    abstracts, selector = Made(keys), Sentence(end_ids=frozenset({9}))
    other = -make()
    ids = [1] * 900
    first = chosen(selector, step_of(abstracts, make() * 4, range(1, 50), 4, token_ids=ids))
    assert 20 in first
    assert 20 in chosen(selector, step_of(abstracts, other, range(1, 50), 4, token_ids=ids))
    assert 20 not in chosen(selector, step_of(abstracts, other, range(1, 50), 4, token_ids=[*ids, 9]))


def test_columns_of_a_sentence_go_together():
    """Guards the chunks: a sentence over columns 20 to 22 of which one wins is taken whole, and no neighbour."""
    keys, make = planted(60, [21])
    ids = [1] * 900
    for column in range(50):
        ids[column * 16 + 5] = 1 if column in (20, 21) else 9
    step = step_of(Made(keys), make(), range(1, 50), 3, token_ids=ids)
    assert chosen(Sentence(end_ids=frozenset({9})), step) == {20, 21, 22}
