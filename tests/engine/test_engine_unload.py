"""Unloading: what is freed, what comes back warm, and several conversations under one ledger."""

import gc
import random
import weakref

import pytest
import torch
from engine_fixtures import KeepOpen, ask, engine_on
from gguf_writer import write_tiny_gguf

from edgekv.cache.expectations import Expected
from edgekv.config import Config
from edgekv.engine.build import assemble, load_model
from edgekv.engine.machine import return_memory
from edgekv_storage import DataDir

LEAF_BYTES = 2 * 2 * 16 * 16 * 2


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=2, context=2048)


@pytest.fixture(scope="module")
def model(path):
    loaded = load_model(Config(threads=1), path, with_front=False)
    yield loaded
    loaded.front.close()


def prompt(count, seed=0):
    return [random.Random(seed).randrange(4, 300) for _ in range(count)]


def test_what_torch_keeps_of_a_gpu_is_returned(monkeypatch):
    """Guards `unload` beside other programs: freed weights and pools stayed torch's, and no other found room."""
    returned = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: returned.append(True))
    return_memory()
    assert returned


def test_unloading_frees_the_weights_and_comes_back_warm(path, tmp_path):
    """Guards llama-cpp-python#1442 (memory not freed) and ollama#17247 (an idle unload throws the conversation
    away): weights and pools are gone, the store is not, and the next answer is the one it would have been."""
    config = Config(threads=1, device_budget=4000 * LEAF_BYTES, host_budget=0, attention="exact")

    def load():
        loaded = load_model(config, path, with_front=False)
        weights.append(weakref.ref(loaded.decoder.final_norm))
        return loaded

    weights, ids = [], prompt(300)
    with DataDir.open(tmp_path / "d") as directory:
        engine = assemble(config, load(), data_dir=directory, reload=load)
        engine._front = KeepOpen(engine._front)
        first = ask(engine, ids)
        want = ask(engine, [*ids, *first.token_ids, 7])
        pool = engine._residency.mover.device
        vector = engine.embed([[5, 7], [9]])
        assert (vector.shape, pytest.approx(1.0, abs=1e-5)) == ((2, 64), float(vector[0] @ vector[0]))
        engine.unload()
        gc.collect()
        assert engine.embed([[5, 7]]) is None
        assert (engine.is_loaded, weights[0]()) == (False, None)
        assert (pool.view, pool.pool.numel()) == (None, 0)
        use = engine.cache_use()
        assert (use.device_bytes, use.host_bytes) == (0, 0)
        assert use.disk_bytes > 0
        assert len(engine.stored_paths(b"s" * 16)) == 1
        again = ask(engine, [*ids, *first.token_ids, 7])
        assert engine.is_loaded
        assert again.token_ids == want.token_ids
        assert again.usage.reused_tokens == 304
        engine.unload()
        engine.release(b"s" * 16, forget=True)
        assert not engine.is_loaded
        assert engine.cache_use().disk_bytes == 0
        engine.close()


def test_what_was_said_while_unloaded_and_what_moved_before_is_still_known(path, tmp_path):
    """Guards hints given while nothing is loaded: they went to tiers that were gone. Moves and peaks began anew."""
    config = Config(threads=1, device_budget=60 * LEAF_BYTES, host_budget=30 * LEAF_BYTES, attention="exact")

    def load():
        return load_model(config, path, with_front=False)

    with DataDir.open(tmp_path / "d") as directory:
        engine = assemble(config, load(), data_dir=directory, reload=load)
        engine._front = KeepOpen(engine._front)
        ask(engine, prompt(600))
        moves, peak = engine.moves(), engine.cache_use().device_peak_bytes
        assert moves
        engine.unload()
        engine.hint(b"a" * 16, "tool", 1000.0)
        engine.hint(b"b" * 16, "done", None)
        engine.load()
        said = engine._residency.expectations
        assert (said.of(b"a" * 16), said.of(b"b" * 16)) == (Expected.AT_ONCE, Expected.NEVER)
        assert (engine.moves(), engine.cache_use().device_peak_bytes) == (moves, peak)
        for name in (b"a", b"b"):
            engine.release(name * 16, forget=True)
        assert said._said == {}
        engine.close()


def test_what_cannot_be_made_again_stays(model):
    """Guards engines without a file behind them (benchmarks): unloading them does nothing."""
    with engine_on(model) as engine:
        engine.unload()
        assert engine.is_loaded
        assert len(ask(engine, prompt(20), durable=False).token_ids) == 8


def test_conversations_stay_warm_together(model, tmp_path):
    """Guards ollama#18072: two long chats in turns, every token of both reused, from memory, under one limit."""
    with engine_on(model, tmp_path / "d", device_leaves=200) as engine:
        contexts = {name * 16: prompt(300, seed=name[0]) for name in (b"a", b"b", b"c")}
        for turn in range(3):
            for name, context in contexts.items():
                result = ask(engine, context, sequence_id=name)
                assert result.usage.reused_tokens == (0 if turn == 0 else len(context) - 2)
                context += [*result.token_ids, 5 + turn]
        assert (
            engine.cache_use().device_bytes
            == sum(-(-(len(c) - 2) // 16) * 2 for c in contexts.values()) * LEAF_BYTES
        )


@pytest.mark.parametrize(
    ("hints", "gone"),
    [({}, b"a"), ({b"b": "done"}, b"b"), ({b"a": "tool"}, b"b"), ({b"a": "user", b"b": "tool"}, b"a")],
)
def test_hints_order_who_gives_way(model, hints, gone):
    """Guards Continuum's order: a finished chat leaves before one that a tool is about to go on with."""
    with engine_on(model, device_leaves=100, host_leaves=0) as engine:
        for name in (b"a", b"b"):
            ask(engine, prompt(300, seed=name[0]), sequence_id=name * 16, durable=False)
        for name, expect in hints.items():
            engine.hint(name * 16, expect, 60.0)
        ask(engine, prompt(200), sequence_id=b"c" * 16, durable=False)
        held = {name: engine._residency.sequences[name * 16].num_tokens for name in (b"a", b"b")}
        kept = b"b" if gone == b"a" else b"a"
        assert held[kept] > 300 > held[gone]
