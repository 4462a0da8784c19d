"""Promoted leaves on a tiny model: whom they give way to, what is counted of them, which branch is found again."""

import random
import shutil

import numpy as np
import pytest
import torch
from engine_fixtures import Recorder, ask, engine_on
from gguf_writer import write_tiny_gguf

from edgekv.cache.directory import ABSENT
from edgekv.config import Config
from edgekv.engine import selected
from edgekv.engine import selected as selected_attention
from edgekv.engine.build import load_model
from edgekv.engine.selected import AttentionTally, SelectedAttention
from edgekv.policies.selection import cascade
from edgekv.policies.selection.cascade import Cascade
from edgekv.policies.selection.methods import SELECTORS
from edgekv.tiers.abstracts import Abstracts
from edgekv.tiers.arrivals import DamagedColumns
from edgekv.tiers.kept_abstracts import KeptAbstracts
from edgekv.tiers.promoted import PromotedLeaves
from edgekv.tiers.promotion import Promotion

LAYERS = 2
LEAF_BYTES = 2 * 2 * 16 * 16 * 2
SELECTED = {"attention": "selected", "budget": 128, "prefill_budget": 128}
SEQUENCE = b"s" * 16
FEW = {"device_leaves": 40, "host_leaves": 44}
FEW_ON_GPU = {"device_leaves": 40, "host_leaves": 60, "in_place": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=LAYERS, context=4096)
    loaded = load_model(Config(threads=1), path, with_front=False)
    yield loaded
    loaded.front.close()


def prompt(count, seed=0):
    return [random.Random(seed).randrange(4, 300) for _ in range(count)]


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory, alike):
    """(folder with 640 tokens of a conversation, made under selection; logits after them with all in memory)."""
    folder = tmp_path_factory.mktemp("stored") / "d"
    with engine_on(model, folder, **SELECTED) as engine:
        ask(engine, prompt(640), max_tokens=1)
    with engine_on(model, folder, **SELECTED) as engine:
        seen = Recorder(engine)
        ask(engine, prompt(640), max_tokens=12)
        return folder, seen.all()


def same(found, want):
    return float((found - want).abs().max()) < 1e-3


def test_promoted_leaves_of_an_idle_sequence_give_way_on_a_device(model, stored):
    """Guards the device pool of a GPU: single leaves of a conversation nobody talks in kept their slots, and whole
    columns of the next one found no room."""
    limits = {"device_leaves": 80, "host_leaves": 60, "in_place": False}
    with engine_on(model, stored[0], **SELECTED, **limits) as engine:
        ask(engine, prompt(640))
        promoted = engine._residency.promotion.promoted
        assert promoted.num_slots >= 30
        engine._runner.attention = "exact"
        assert len(ask(engine, prompt(500, seed=1), sequence_id=b"t" * 16).token_ids) == 8
        assert promoted.num_slots == 0


def test_promoted_leaves_of_the_active_sequence_give_way_on_a_device(model, stored):
    """Guards the last resort on a GPU: what is only a cache goes before a step is refused, no more of it than is
    needed, and none that a step cannot do without."""
    limits = {"device_leaves": 80, "host_leaves": 60, "in_place": False}
    with engine_on(model, stored[0], **SELECTED, **limits) as engine:
        ask(engine, prompt(640))
        residency = engine._residency
        promoted, sequence = residency.promotion.promoted, residency.sequences[SEQUENCE]
        residency.activate(sequence)
        held, demotable = promoted.num_slots, len(residency._demotable(sequence)) * LAYERS
        wanted = residency.mover.device.num_free + demotable + 4
        residency._make_room(wanted)
        assert residency.mover.device.num_free >= wanted
        assert residency.promotion._floor <= promoted.num_slots <= held - 4
        residency.activate(None)


@pytest.mark.parametrize(
    "limits", [{"device_leaves": 60, "host_leaves": 90}, {"device_leaves": 60}, FEW, FEW_ON_GPU]
)
def test_keys_made_anew_while_a_pass_runs_cost_no_column(model, stored, monkeypatch, limits):
    """Guards the running pass's table of slots: room for a leaf was made by dropping columns that it went on to
    read by their old slots. With fewer slots than lost keys the leaves that these were made of kept them all, and
    the method of selection was blamed."""
    passes, made = [], []
    begin, make = PromotedLeaves.begin_pass, Promotion._take_host
    monkeypatch.setattr(KeptAbstracts, "read_keys", lambda *_: np.empty(0, np.intp))
    monkeypatch.setattr(PromotedLeaves, "begin_pass", lambda *a: passes.append(1) or begin(*a))
    monkeypatch.setattr(Promotion, "_take_host", lambda *a: made.append(len(passes)) or make(*a))
    with engine_on(model, stored[0], **SELECTED, **limits) as engine:
        seen = Recorder(engine)
        ask(engine, prompt(640), max_tokens=12)
        assert same(seen.all(), stored[1])
    assert passes
    assert not any(made), "a slot was taken between the beginning of a pass and its end"


def test_all_keys_are_here_from_the_second_token_on(model, stored, monkeypatch):
    """Guards decoding after a restart: with keys on disk every layer of every token returned to Python for them.
    Before the first token few are read."""
    monkeypatch.setitem(SELECTORS, "cascade", lambda: Cascade(max_candidates=8))
    monkeypatch.setattr(cascade, "lenders", lambda *_: [LAYERS])  # none
    left = []
    with engine_on(model, stored[0], **SELECTED) as engine:
        for count in (1, 2):
            ask(engine, prompt(640), max_tokens=count)
            left.append(engine._residency.promotion._abstracts[SEQUENCE].num_absent)
        found = engine._residency.promotion._abstracts[SEQUENCE].all_keys[:, :39].clone()
    assert left[0] > 20 * LAYERS
    assert left[1] == 0
    with engine_on(model, stored[0], **SELECTED) as engine:
        ask(engine, prompt(640), max_tokens=1)
        known = engine._residency.promotion._abstracts[SEQUENCE]
        for layer in range(LAYERS):
            known.ensure(layer, np.arange(39))
        assert (known.all_keys[:, :39] == found).all()


def test_leaves_of_a_running_step_never_give_way(model, stored, monkeypatch):
    """Guards pins: of the leaves that one layer attends to, all are in their slots when it attends."""
    taken = []
    bring = PromotedLeaves.bring

    def watching(self, layer, columns):
        before = self.where[layer].copy()
        held = np.flatnonzero((before != ABSENT) & (self._promoted[layer, : len(before)] != ABSENT))
        used = held[self._used[self._promoted[layer, held]] == self._now]
        bring(self, layer, columns)
        taken.append(len(used))
        assert (self.where[layer, used] == before[used]).all()
        assert (self.where[layer, columns] != ABSENT).all()

    monkeypatch.setattr(PromotedLeaves, "bring", watching)
    with engine_on(model, stored[0], **SELECTED, device_leaves=40, host_leaves=44) as engine:
        seen = Recorder(engine)
        ask(engine, prompt(640), max_tokens=12)
        assert same(seen.all(), stored[1])
    assert any(taken)


def test_bytes_read_are_told_by_tier(model, stored, monkeypatch):
    """Guards honesty: what an answer says it read is what its steps attended to, by the pool it lay in."""
    monkeypatch.setattr(
        selected_attention, "SAMPLE_TIERS", 0
    )  # every pass: usually one in sixteen stands for all
    slots = []
    inner_end, inner_count = SelectedAttention.end, AttentionTally.count_leaves

    def end(self):
        if (whole := self._whole) is not None:
            slots.extend(whole.where[layer][whole.columns(layer).long()].clone() for layer in range(LAYERS))
        inner_end(self)

    def count(tally, first):
        slots.extend(tally.slots)
        inner_count(tally, first)

    monkeypatch.setattr(SelectedAttention, "end", end)
    monkeypatch.setattr(AttentionTally, "count_leaves", count)
    with engine_on(model, stored[0], **SELECTED, device_leaves=60, host_leaves=90) as engine:
        promoted = engine._residency.promotion.promoted
        first_host = engine._residency.mover.host.first_slot
        use = ask(engine, prompt(640), max_tokens=12).attention
        on_host = sum(int((s >= first_host).sum()) for s in slots)
        assert use.host_bytes_read == on_host * LEAF_BYTES > 0
        assert use.device_bytes_read == (sum(map(len, slots)) - on_host) * LEAF_BYTES > 0
        assert use.disk_bytes_read >= use.promoted_bytes > 0
        assert use.mean_tokens <= 128
        assert promoted.take_use().num_read == 0, "counted for the next answer too"


@pytest.mark.parametrize(
    "make", [Promotion.make_abstracts_at_hand, lambda p, s: p.make_abstracts(s, s.num_full)]
)
@torch.inference_mode()
def test_a_node_that_could_not_be_made_leaves_nothing_behind(model, stored, monkeypatch, make):
    """Guards nodes against memory that was never written: the columns counted although their node had failed, and
    the room stayed taken. What comes after a pass must not read either: its tokens are appended already."""
    with engine_on(model, stored[0], **SELECTED) as engine:
        ask(engine, prompt(640), max_tokens=1)
        residency = engine._residency
        sequence, known = residency.sequences[SEQUENCE], residency.promotion._abstracts[SEQUENCE]
        want = torch.stack([known.nodes(layer) for layer in range(LAYERS)])
        known.shorten(39)
        before = engine.cache_use().host_bytes
        with monkeypatch.context() as patch:
            patch.setattr(Abstracts, "_make_node", refuse)
            with pytest.raises(DamagedColumns):
                make(residency.promotion, sequence)
        assert (known.num_columns, engine.cache_use().host_bytes) == (39, before)
        absent = int(np.flatnonzero(~known._absent[0, 32:39])[0]) + 32
        known._absent[0, absent] = True
        known.num_absent += 1
        with monkeypatch.context() as patch:
            patch.setattr(KeptAbstracts, "read_keys", refuse)
            residency.promotion.make_abstracts_at_hand(sequence)
        assert (known.num_columns, engine.cache_use().host_bytes) == (39, before)
        residency.promotion.make_abstracts(sequence, 40)
        assert torch.equal(torch.stack([known.nodes(layer) for layer in range(LAYERS)]), want)


def refuse(*_):
    raise DamagedColumns(3, 1)


def test_what_is_worth_least_leaves_first(model, tmp_path, monkeypatch):
    """Guards heavy hitters as a score to demote by: the sums were kept and nobody asked for them."""
    options = {"selection": "heavy", "device_leaves": 60, "host_leaves": 150}
    with engine_on(model, tmp_path / "d", **SELECTED, **options) as engine:
        ask(engine, prompt(1200), max_tokens=4)
        residency = engine._residency
        sequence = residency.sequences[SEQUENCE]
        worth = residency.worth_of(sequence)
        assert worth[0] == np.inf
        assert len(set(worth[1:60].tolist())) > 50
        held = sequence.directory.on_host()
        residency._drop_own(sequence, len(held) // 2 * LAYERS, "because")
        kept = sequence.directory.on_host()
        gone = np.setdiff1d(held, kept)
        assert len(gone)
        assert worth[gone].max() <= worth[kept[kept < len(worth)]].min()
        sequence.num_cuts += 1
        assert not len(residency.worth_of(sequence)), "of what was cut off"


def test_a_cut_forgets_what_was_chosen_before(model, stored, tmp_path, monkeypatch):
    """Guards the candidates that are kept between tokens: behind a cut they were columns of another past."""
    made = []
    monkeypatch.setitem(SELECTORS, "cascade", lambda: made.append(Cascade(max_candidates=8)) or made[-1])
    found = []
    for by_hand in (False, True):
        folder = tmp_path / str(by_hand)
        shutil.copytree(stored[0], folder)
        with engine_on(model, folder, **SELECTED) as engine:
            ask(engine, prompt(640), max_tokens=12)
            assert made[-1]._kept[:, 0].all()
            if by_hand:
                with torch.inference_mode():
                    made[-1].reset()
            seen = Recorder(engine)
            result = ask(engine, [*prompt(400), 7], max_tokens=8)
            assert result.usage.reused_tokens == 400
            found.append(seen.all())
    assert same(*found)


def test_the_longest_of_several_selected_branches_is_found(model, tmp_path):
    """Guards resume: selection began early and went far, later once more behind a longer exact path. The path that
    was looked at first was taken, and hundreds of tokens computed again.
    """
    ids = prompt(640, seed=4)
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        engine._residency.block_columns = 10  # exact, since there is nothing yet to select from
        ask(engine, ids, max_tokens=1)
    with engine_on(model, tmp_path / "d", attention="exact") as engine:
        assert ask(engine, ids[:330], max_tokens=1).usage.reused_tokens == 160
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        assert ask(engine, ids[:336], max_tokens=2).usage.reused_tokens == 320
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        assert ask(engine, ids, max_tokens=1).usage.reused_tokens == 624


def test_whole_columns_give_way_to_promoted_leaves(model, tmp_path):
    """Guards a long conversation computed under small limits: its own old columns filled the host, promoted leaves
    kept the few slots taken while little was away, and every token read all its leaves from disk again.
    """
    with engine_on(model, tmp_path / "d", **SELECTED, device_leaves=60, host_leaves=300) as engine:
        ask(engine, prompt(3200), max_tokens=4)
        promoted = engine._residency.promotion.promoted
        assert promoted.num_slots >= 8 * (128 // 16 + 1) * LAYERS
        use = ask(engine, prompt(3200), max_tokens=24).attention
        assert use.promoted_bytes < 24 * LAYERS * 4 * LEAF_BYTES, "about as many as a token chooses"


def test_a_read_has_to_be_worth_it(model, stored, monkeypatch):
    """Guards the weight of what is away: at equal weights a step reads leaves that hardly count."""
    read = []
    for weight in (1.0, 0.1):
        monkeypatch.setattr(selected, "AWAY_WEIGHT", weight)
        with engine_on(model, stored[0], **SELECTED, **FEW) as engine:
            read.append(ask(engine, prompt(640), max_tokens=12).attention.promoted_bytes)
    assert read[0] > read[1] > 0
