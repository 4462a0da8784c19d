"""Selected attention end to end on a tiny model: what is read, where it lies, what is kept of how it came to be."""

import random

import numpy as np
import pytest
import torch
from engine_fixtures import Recorder, ask, engine_on
from gguf_writer import write_tiny_gguf

from edgekv.config import Config
from edgekv.engine.build import load_model
from edgekv.engine.selected import SelectedAttention
from edgekv.errors import CapacityError, ContextOverflow
from edgekv.policies.selection.cascade import Cascade
from edgekv.policies.selection.methods import SELECTORS
from edgekv.tiers.kept_abstracts import KeptAbstracts


def _model(tmp_path_factory, context):
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=3, context=context)
    return load_model(Config(threads=2), path, with_front=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    loaded = _model(tmp_path_factory, 4096)
    yield loaded
    loaded.front.close()


@pytest.fixture(scope="module")
def short_model(tmp_path_factory):
    """Trained on 256 tokens only."""
    loaded = _model(tmp_path_factory, 256)
    yield loaded
    loaded.front.close()


def prompt(count, seed=0):
    return [random.Random(seed).randrange(4, 300) for _ in range(count)]


SELECTED = {"attention": "selected", "budget": 256, "prefill_budget": 256}
LIMITS = {
    "some on the host": {"device_leaves": 90},
    "some on disk": {"device_leaves": 90, "host_leaves": 110},
    "gpu: host and disk": {"device_leaves": 260, "host_leaves": 150, "in_place": False},
}


def test_a_budget_that_covers_all_is_exact(model):
    """Guards exactness: where the budget reads everything, tokens and name are those of exact attention."""
    ids = prompt(300)
    with engine_on(model) as engine:
        want = ask(engine, ids, durable=False)
    with engine_on(model, attention="selected", budget=1024) as engine:
        got = ask(engine, ids, durable=False)
    assert got.token_ids == want.token_ids
    assert want.exactness == got.exactness == "exact"


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
def test_where_leaves_lie_changes_nothing(model, tmp_path, limits):
    """Guards promotion: a leaf taken for another, or attended before it landed, changes the logits at once."""
    ids = prompt(900)
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        ask(engine, ids, max_tokens=1)
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        seen = Recorder(engine)
        want = ask(engine, ids, max_tokens=40)
        want_logits = seen.all()
    with engine_on(model, tmp_path / "e", **SELECTED) as engine:
        ask(engine, ids, max_tokens=1)
    with engine_on(model, tmp_path / "e", **SELECTED, **limits) as engine:
        seen = Recorder(engine)
        got = ask(engine, ids, max_tokens=40)
        assert got.usage.reused_tokens == want.usage.reused_tokens == 896
        assert got.token_ids == want.token_ids
        assert float((seen.all() - want_logits).abs().max()) < 1e-3
        assert got.exactness == want.exactness == "selected"
        assert 0 < got.attention.mean_tokens <= 256
        assert engine._residency.mover.disk.store.check() == []


@pytest.mark.parametrize("limits", [{}, *LIMITS.values()], ids=["all on the device", *LIMITS.keys()])
def test_prefill_within_limits(model, tmp_path, limits):
    """Guards the limits while a document is read that fits no tier above the disk."""
    with engine_on(model, tmp_path / "d", **SELECTED, **limits) as engine:
        result = ask(engine, prompt(1500), max_tokens=20)
        assert len(result.token_ids) == 20
        assert result.exactness == "selected"


def test_sink_and_window_are_what_is_attended(model):
    """Guards the columns' arithmetic: the same as masked attention written down plainly."""
    ids, num_heads, window_columns = prompt(500, seed=3), model.decoder.config.num_heads, 16 - 1
    with engine_on(model, **SELECTED, selection="window") as engine:
        seen = Recorder(engine)
        engine._residency.block_columns = 1  # so that every token's window begins at most 15 tokens early
        ask(engine, ids, max_tokens=1, durable=False)
        got = seen.all()[0]
    kept = {}

    def attend(layer, q, k, v):
        kept[layer] = (k.bfloat16().float(), v.bfloat16().float())
        keys, values = (x.repeat_interleave(num_heads // k.shape[1], 1) for x in kept[layer])
        at = torch.arange(len(q))
        first = (at // 16 - window_columns + 1).clamp_min(0) * 16
        mask = (at[None] <= at[:, None]) & ((at[None] >= first[:, None]) | (at[None] < 16))
        scores = torch.einsum("qhd,khd->hqk", q, keys) * q.shape[2] ** -0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values)

    with torch.inference_mode():
        hidden = model.decoder.forward(ids, 0, attend)
        want = model.decoder.logits(hidden[-1:])[0]
    assert float((got - want).abs().max() / want.std()) < 0.1


def test_what_was_selected_is_never_taken_for_exact(model, tmp_path):
    """Guards provenance: exact attention after a restart reuses only what was made exactly."""
    ids = prompt(600, seed=5)
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        first = ask(engine, ids, max_tokens=4)
    assert first.exactness == "selected"
    with engine_on(model) as engine:
        want = ask(engine, ids, max_tokens=4, durable=False)
    with engine_on(model, tmp_path / "d") as engine:
        got = ask(engine, ids, max_tokens=4)
    assert got.usage.reused_tokens == 512  # the first block has nothing before it to select from
    assert got.exactness == "exact"
    assert got.token_ids == want.token_ids
    with engine_on(
        model, tmp_path / "d", **SELECTED
    ) as engine:  # exact ones are as good, and now there are more
        again = ask(engine, ids, max_tokens=4)
    assert again.usage.reused_tokens == 592
    with engine_on(model, tmp_path / "d", attention="auto") as engine:
        assert ask(engine, [*ids, *want.token_ids, 7], max_tokens=2).exactness == "exact"


def test_a_warm_selected_sequence_is_recomputed_for_exact(model):
    """Guards stickiness in memory: what depends on a selection is computed again when exactness is asked for."""
    ids = prompt(600, seed=6)
    with engine_on(model, **SELECTED) as engine:
        ask(engine, ids, max_tokens=4, durable=False)
        engine._runner.attention = "exact"
        got = ask(engine, ids, max_tokens=4, durable=False)
    with engine_on(model) as engine:
        want = ask(engine, ids, max_tokens=4, durable=False)
    assert got.exactness == "exact"
    assert got.token_ids == want.token_ids


def test_auto_selects_beyond_the_device(model, tmp_path):
    """Guards `auto`: exact while the conversation fits the device pool, selected from there on."""
    with engine_on(
        model, tmp_path / "d", attention="auto", budget=128, prefill_budget=128, device_leaves=90
    ) as engine:
        assert ask(engine, prompt(300), max_tokens=4).exactness == "exact"
        assert ask(engine, prompt(600), max_tokens=4).exactness == "selected"


def test_beyond_the_trained_window(short_model, tmp_path):
    """Guards virtual positions: 4 times the trained window works, resumes, and is refused under exact."""
    ids = prompt(1000, seed=8)
    with engine_on(short_model, tmp_path / "d", attention="auto", budget=128, prefill_budget=128) as engine:
        seen = Recorder(engine)
        want = ask(engine, ids, max_tokens=12)
        assert torch.isfinite(seen.all()).all()
        assert want.exactness == "selected"
        engine._runner.attention = "exact"
        with pytest.raises(ContextOverflow, match="--attention auto"):
            ask(engine, ids)
    with engine_on(short_model, tmp_path / "d", attention="auto", budget=128, prefill_budget=128) as engine:
        got = ask(engine, ids, max_tokens=12)
        assert got.usage.reused_tokens == 992


@pytest.mark.parametrize("count", [1, 15, 16, 17, 255, 256, 257, 300])
def test_every_length(model, count):
    """Guards the edges: sequences without a column to choose, ending in mid-leaf or on its end."""
    with engine_on(model, attention="selected", budget=128, prefill_budget=128) as engine:
        result = ask(engine, prompt(count), max_tokens=20, durable=False)
        assert len(result.token_ids) == 20


def test_no_room_for_abstracts_is_one_line(model):
    """Guards the host's limit: what does not fit is refused with what to do, nothing is dropped."""
    with (
        engine_on(model, attention="selected", budget=128, prefill_budget=128, host_leaves=2) as engine,
        pytest.raises(CapacityError, match="--host-budget"),
    ):
        ask(engine, prompt(900), durable=False)


def _resumed(model, path, ids):
    """(answer, bytes of leaves promoted, low-bit keys still on disk) of a conversation that is opened again."""
    with engine_on(model, path, **SELECTED, device_leaves=200) as engine:
        result = ask(engine, ids, max_tokens=1)  # tokens after it read more keys on the way
        absent = sum(known.num_absent for known in engine._residency.promotion._abstracts.values())
        return result, result.attention.promoted_bytes, absent


def test_resume_reads_nodes_and_the_keys_of_candidates(model, tmp_path, monkeypatch):
    """Guards the levels: a resume that reads every leaf or every key to find the few it needs is a scan."""
    ids = prompt(2400, seed=11)
    monkeypatch.setitem(SELECTORS, "cascade", lambda: Cascade(max_candidates=64))
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        ask(engine, ids, max_tokens=1)
    result, promoted_bytes, absent = _resumed(model, tmp_path / "d", ids)
    num_leaves = 3 * 149
    assert result.usage.reused_tokens == 149 * 16
    assert 0 < promoted_bytes < num_leaves * 2048 / 2
    assert absent > num_leaves / 4


@pytest.mark.parametrize("lost", ["read_keys", "nodes"])
def test_lost_abstracts_are_made_anew(model, tmp_path, monkeypatch, lost):
    """Guards abstracts on disk as a cache: without them, or with damaged ones, the answer is the same."""
    ids = prompt(900, seed=12)
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        ask(engine, ids, max_tokens=1)
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        seen = Recorder(engine)
        ask(engine, ids, max_tokens=1)
        want = seen.all()
    nothing = {"read_keys": np.empty(0, np.intp), "nodes": []}[lost]
    monkeypatch.setattr(KeptAbstracts, lost, lambda *_: nothing)
    with engine_on(model, tmp_path / "d", **SELECTED) as engine:
        seen = Recorder(engine)
        ask(engine, ids, max_tokens=1)
        assert float((seen.all() - want).abs().max()) < 1e-3


def test_what_was_read_most_is_told(model):
    """Guards the list of what an answer read: columns of the past, neither sink nor window, by their share."""
    with engine_on(model, attention="selected", budget=128, window=64) as engine:
        use = ask(engine, prompt(900), max_tokens=20).attention
    positions = [position for position, _ in use.most_read]
    assert positions
    assert all(position % 16 == 0 and 16 <= position < 920 - 64 for position in positions)
    shares = [share for _, share in use.most_read]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] <= shares[0] <= 1
    assert len(set(positions)) == len(positions)


def test_slots_of_another_sequence_are_never_written_to(model):
    """Guards what is kept within a column: two sequences at one version of their directories share no slots."""
    other = b"o" * 16
    with engine_on(model, attention="selected", budget=128) as engine:
        ask(engine, prompt(290, seed=1), durable=False, sequence_id=other, max_tokens=3)
        slots = torch.from_numpy(
            engine._residency.sequences[other].directory.device[:, 290 // 16].copy()
        ).long()
        assert (slots >= 0).all()
        before = engine._residency.mover.device.pool[slots].clone()
        ask(engine, prompt(290), durable=False, max_tokens=3)
        assert torch.equal(engine._residency.mover.device.pool[slots], before)


@pytest.mark.parametrize("beyond", [False, True])
def test_a_pass_that_goes_on_is_as_one_made_anew(model, short_model, monkeypatch, beyond):
    """Guards what is kept from token to token within a column: place, missing tokens, turned queries, searches."""
    answers, went_on, goes_on = {}, [], SelectedAttention._goes_on
    for anew in (False, True):
        one = short_model if beyond else model
        with monkeypatch.context() as patch, engine_on(one, attention="selected", budget=128) as engine:
            patch.setattr(
                SelectedAttention,
                "_goes_on",
                (lambda *_: False) if anew else (lambda *a: went_on.append(goes_on(*a)) or went_on[-1]),
            )
            result = ask(engine, prompt(500), durable=False, max_tokens=40)
            answers[anew] = (result.token_ids, result.attention.mean_tokens, result.attention.most_read)
    assert answers[False] == answers[True]
    assert 30 <= sum(went_on) < 39


def test_every_answer_tells_the_mass_it_kept(model):
    """Guards short answers: of passes numbered over all answers one in 64 was measured, and most told nothing."""
    with engine_on(model, attention="selected", budget=128) as engine:
        for seed in range(3):
            use = ask(engine, prompt(290, seed), durable=False, max_tokens=3).attention
            assert use.mass_kept is not None
            assert 0 < use.mass_kept <= 1
