"""Every method of selection through the tiny engine: wherever leaves lie, and beyond the trained window."""

import random

import pytest
import torch
from engine_fixtures import Recorder, ask, engine_on
from gguf_writer import write_tiny_gguf

from edgekv.config import Config
from edgekv.engine.build import load_model
from edgekv.policies.selection.methods import SELECTORS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Trained on 512 tokens."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=2, context=512)
    loaded = load_model(Config(threads=1), path, with_front=False)
    yield loaded
    loaded.front.close()


def prompt(count, seed=0):
    return [random.Random(seed).randrange(4, 300) for _ in range(count)]


SELECTED = {"attention": "selected", "budget": 160, "prefill_budget": 256}


@pytest.mark.parametrize("method", SELECTORS)
def test_where_leaves_lie_changes_nothing(model, tmp_path, method):
    """Guards what a method is given, and that no leaf of a choice gives way while another of it is brought up: both
    answer otherwise.
    """
    ids, options = prompt(480), {**SELECTED, "selection": method}
    with engine_on(model, tmp_path / "d", **options) as engine:
        ask(engine, ids, max_tokens=1)
    found = []
    for limits in ({}, {"device_leaves": 60, "host_leaves": 80}):
        with engine_on(model, tmp_path / "d", **options, **limits) as engine:
            seen = Recorder(engine)
            result = ask(engine, ids, max_tokens=12, durable=True)
            assert result.usage.reused_tokens >= 464
            assert result.exactness == "selected"
            found.append(seen.all())
            assert engine._residency.mover.disk.store.check() == []
        with engine_on(model, tmp_path / "d", **options) as engine:  # what was said is no part of the next
            engine.release(b"s" * 16, forget=True)
            ask(engine, ids, max_tokens=1)
    assert float((found[0] - found[1]).abs().max()) < 1e-3


@pytest.mark.parametrize("method", SELECTORS)
def test_beyond_the_trained_window(model, method):
    """Guards turned queries: a method that forgets them ranks far columns by chance, or fails on shapes."""
    with engine_on(model, **{**SELECTED, "selection": method}) as engine:
        seen = Recorder(engine)
        result = ask(engine, prompt(700), max_tokens=6, durable=False)
        assert len(result.token_ids) == 6
        assert torch.isfinite(seen.all()).all()
        assert 0 < result.attention.mean_tokens <= 160 + 16


def test_what_full_attention_gives(model, monkeypatch):
    """Guards the oracle: its masses are a plain softmax's over all that could be attended to, turned or not."""
    seen = []

    class Watching(SELECTORS["oracle"]):
        def select(self, step):
            seen.append((step, step.attended(), step.q.clone()))
            return super().select(step)

    monkeypatch.setitem(SELECTORS, "oracle", Watching)
    with engine_on(model, **{**SELECTED, "selection": "oracle"}) as engine:
        ask(engine, prompt(420), max_tokens=3, durable=False)
        step, mass, q = seen[-1]
        sequence = engine._residency.sequences[b"s" * 16]
        pool, num_tokens = engine._residency.mover.device.pool, 422
        keys = pool[torch.from_numpy(sequence.directory.device[step.layer]).long(), 0].float()
        keys = keys.transpose(1, 2).flatten(0, 1)[:num_tokens].repeat_interleave(2, 1)
        weights = (torch.einsum("thd,shd->ths", q, keys) * step.scale).softmax(-1)
        want = torch.nn.functional.pad(weights.sum((0, 1)), (0, -num_tokens % 16)).reshape(-1, 16).sum(1)
    assert torch.allclose(mass, want[step.columns.start : step.columns.stop], atol=1e-4)
