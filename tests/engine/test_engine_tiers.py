"""The KV path end to end on a tiny model: every tier, every limit, restart, damage, eviction."""

import random

import pytest
import torch
from engine_fixtures import Recorder, ask, engine_on
from gguf_writer import write_tiny_gguf

from edgekv.config import Config
from edgekv.engine.build import load_model, prefill_cost
from edgekv.errors import CapacityError, ConfigError, ContextOverflow
from edgekv.events import Notice, PrefillProgress

LEAF_BYTES = 2 * 2 * 16 * 16 * 2  # K and V, 2 heads, 16 tokens, 16 channels, bf16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=3, context=4096)
    loaded = load_model(Config(threads=2), path, with_front=False)
    yield loaded
    loaded.front.close()


def prompt(count, seed=0):
    return [random.Random(seed).randrange(4, 300) for _ in range(count)]


LIMITS = {
    "all on the device": {},
    "some on the host": {"device_leaves": 60},
    "a little of each": {"device_leaves": 40, "host_leaves": 30},
    "no host": {"device_leaves": 30, "host_leaves": 0},
    "the smallest device": {"device_leaves": 11, "host_leaves": 0},
    "gpu: host and disk": {"device_leaves": 40, "host_leaves": 40, "in_place": False},
    "gpu: through a small host": {"device_leaves": 40, "host_leaves": 12, "in_place": False},
    "gpu: all on the device": {"in_place": False},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
def test_limits_do_not_change_the_answer(model, tmp_path, limits):
    """Guards streaming: a leaf skipped, read twice, or attended before it landed changes the logits at once.
    The stored KV is the same in both runs, so only the cut of the merge differs: 1e-3 of a logit at most."""
    ids = prompt(700)
    with engine_on(model, tmp_path / "d") as engine:
        ask(engine, ids, max_tokens=1)
    with engine_on(model, tmp_path / "d") as engine:
        seen = Recorder(engine)
        want = ask(engine, ids, max_tokens=40)
        want_logits = seen.all()
    with engine_on(model, tmp_path / "e") as engine:
        ask(engine, ids, max_tokens=1)
    with engine_on(model, tmp_path / "e", **limits) as engine:
        seen = Recorder(engine)
        got = ask(engine, ids, max_tokens=40)
        assert got.usage.reused_tokens == want.usage.reused_tokens == 688
        assert got.token_ids == want.token_ids
        assert float((seen.all() - want_logits).abs().max()) < 1e-3
        assert engine._residency.mover.disk.store.check() == []


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
def test_prefill_within_limits(model, tmp_path, limits):
    """Guards demotion during prefill: a column dropped before it was written, or block KV that outgrows the
    pool. The limits change how blocks are cut, hence 16-bit rounding, hence a tolerance."""
    ids = prompt(700, seed=1)
    with engine_on(model) as engine:
        seen = Recorder(engine)
        ask(engine, ids, max_tokens=2, durable=False)
        want = seen.all()[0]
    with engine_on(model, tmp_path / "d", **limits) as engine:
        seen = Recorder(engine)
        result = ask(engine, ids, max_tokens=60)
        assert len(result.token_ids) == 60
        assert float((seen.all()[0] - want).abs().max() / want.std()) < 0.1


def test_resume_reuses_all_full_leaves(model, tmp_path):
    """Guards promise 2: after a restart only the unfinished leaf and the new turn are computed."""
    ids = prompt(333)
    with engine_on(model, tmp_path / "d") as engine:
        first = ask(engine, ids, max_tokens=20)
    context = [*ids, *first.token_ids, *prompt(12, seed=5)]
    with engine_on(model, tmp_path / "d") as engine:
        again = ask(engine, context)
        assert again.usage.reused_tokens == (333 + 19) // 16 * 16
        assert again.usage.prompt_tokens == len(context)
    with engine_on(model) as engine:
        assert ask(engine, context, durable=False).token_ids == again.token_ids


def test_warm_sequence_reuses_every_token(model):
    """Guards the unfinished leaf in memory: the next turn computes only its own tokens."""
    ids = prompt(50)
    with engine_on(model) as engine:
        first = ask(engine, ids, durable=False)
        second = ask(engine, [*ids, *first.token_ids, 7, 8, 9], durable=False)
        assert second.usage.reused_tokens == 50 + 7  # the last generated token was never fed


def test_edit_keeps_the_common_prefix(model, tmp_path):
    """Guards branches: an edit costs at most 15 tokens before it, and the old branch is still on disk."""
    ids = prompt(400)
    edited = [*ids[:203], *prompt(60, seed=3)]
    with engine_on(model, tmp_path / "d") as engine:
        old = ask(engine, ids)
        new = ask(engine, edited)
        assert new.usage.reused_tokens == 192
        back = ask(engine, ids)
        assert back.usage.reused_tokens == 384
        assert back.token_ids == old.token_ids
    with engine_on(model) as engine:
        assert ask(engine, edited, durable=False).token_ids == new.token_ids


@pytest.mark.parametrize(
    "limits", [{}, {"device_leaves": 30, "host_leaves": 0}], ids=["restored", "streamed"]
)
def test_damaged_leaves_are_recomputed(model, tmp_path, limits):
    """Guards "never guessed": a flipped bit in a stored leaf is noticed, counted and computed again."""
    ids = prompt(600)
    with engine_on(model, tmp_path / "d") as engine:
        want = ask(engine, ids)
    segment = max((tmp_path / "d").glob("seg-*.kv"), key=lambda p: p.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    heard = []
    with engine_on(model, tmp_path / "d", **limits) as engine:
        got = ask(engine, ids, emit=heard.append)
        assert got.cache.damaged_leaves > 0
        assert 0 < got.usage.reused_tokens < 592
        assert any(isinstance(e, Notice) and "damaged" in e.message for e in heard)
        assert got.token_ids == want.token_ids
        assert ask(engine, ids).cache.damaged_leaves == 0, "the same damage was served again"


@pytest.mark.parametrize("in_place", [True, False], ids=["cpu", "gpu style"])
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["finished", "cancelled while restoring"])
def test_damage_in_several_layers(model, tmp_path, in_place, is_cancelled):
    """Guards leaves damaged in one layer at a late column and in another at an early one: nothing that failed its
    checksum may stay in the pools, not even when the call ends before the layers were looked at."""
    ids = prompt(600)
    with engine_on(model, tmp_path / "d") as engine:
        want = ask(engine, ids)
        places = engine._residency.sequences[b"s" * 16].directory.places
        store = engine._residency.mover.disk.store
        offsets = [
            store._catalog.record(*places[column][:2]).entry.offset
            + store._catalog.record(*places[column][:2]).tables.kv_offset(layer, places[column].leaf)
            for layer, column in [(0, 30), (2, 3)]
        ]
    segment = max((tmp_path / "d").glob("seg-*.kv"), key=lambda p: p.stat().st_size)
    data = bytearray(segment.read_bytes())
    for offset in offsets:
        data[offset + 7] ^= 1
    segment.write_bytes(data)
    with engine_on(model, tmp_path / "d", in_place=in_place) as engine:
        first = ask(engine, ids, cancelled=lambda: is_cancelled)
        assert first.finish_reason == ("cancelled" if is_cancelled else "length")
        assert first.cache.damaged_leaves == 2
        again = ask(engine, ids)
        assert again.token_ids == want.token_ids
        assert again.cache.damaged_leaves == 0
        if not is_cancelled:
            assert first.token_ids == want.token_ids


@pytest.mark.parametrize("in_place", [True, False], ids=["cpu", "gpu style"])
def test_idle_sequence_without_disk_never_costs_the_active_one(model, tmp_path, in_place):
    """Guards a full quota with idle unwritten columns: writing them on the way must not evict, shorten or
    recurse into the sequence that is being computed."""
    ids = prompt(300)
    limits = {"device_leaves": 90, "host_leaves": 60, "in_place": in_place}
    with engine_on(model) as engine:
        want = ask(engine, ids, durable=False)
    with engine_on(model, tmp_path / "d", disk_budget=40 * 3 * LEAF_BYTES + 100_000, **limits) as engine:
        disk = engine._residency.mover.disk
        for n in range(1, 4):
            disk.append, refuse = (lambda *_a: False), disk.append
            ask(engine, prompt(120, seed=n), sequence_id=bytes([n]) * 16)
            disk.append = refuse
        got = ask(engine, ids, sequence_id=b"a" * 16)
        assert got.token_ids == want.token_ids
        assert ask(engine, ids, sequence_id=b"a" * 16).token_ids == want.token_ids


def test_idle_conversations_give_way(model, tmp_path):
    """Guards the ledger with several warm conversations: idle ones are demoted, the active one never fails."""
    contexts = {bytes([n]) * 16: prompt(300, seed=n) for n in range(5)}
    with engine_on(model, tmp_path / "d", device_leaves=90, host_leaves=60) as engine:
        first = {k: ask(engine, ids, sequence_id=k).token_ids for k, ids in contexts.items()}
        for key, ids in contexts.items():
            again = ask(engine, ids, sequence_id=key)
            assert again.token_ids == first[key]
            assert again.usage.reused_tokens >= 288


def test_private_idle_conversation_is_recomputed(model):
    """Guards eviction without a disk: a private conversation that had to give way answers as before."""
    with engine_on(model, device_leaves=100, host_leaves=0) as engine:
        ids, other = prompt(300), prompt(300, seed=9)
        want = ask(engine, ids, durable=False, sequence_id=b"a" * 16)
        ask(engine, other, durable=False, sequence_id=b"b" * 16)
        again = ask(engine, ids, durable=False, sequence_id=b"a" * 16)
        assert again.token_ids == want.token_ids
        assert again.usage.reused_tokens < 288


def test_private_conversation_that_outgrows_memory(model):
    """Guards the ladder's end: without a disk the error names the limit, and the engine goes on."""
    with engine_on(model, device_leaves=40, host_leaves=10) as engine:
        with pytest.raises(CapacityError, match="host limit"):
            ask(engine, prompt(600), durable=False)
        assert len(ask(engine, prompt(60), durable=False, sequence_id=b"t" * 16).token_ids) == 8


def test_answer_that_outgrows_memory_is_kept(model):
    """Guards the partial answer: when memory ends in mid-answer what was generated is returned, with the reason."""
    with engine_on(model, device_leaves=24, host_leaves=3) as engine:
        result = ask(engine, prompt(60), durable=False, max_tokens=300)
        assert result.finish_reason == "context"
        assert 0 < len(result.token_ids) < 300
        assert "limit" in result.notices[0]


def test_context_overflow(model):
    """Guards against silent truncation: a context as long as the window is refused before anything is computed,
    and an answer that reaches the window ends there."""
    with engine_on(model) as engine:
        with pytest.raises(ContextOverflow, match="4096"):
            ask(engine, prompt(4096), durable=False)
        result = ask(engine, prompt(4090), durable=False, max_tokens=50)
        assert (result.finish_reason, len(result.token_ids)) == ("context", 6)


def test_cancel(model):
    """Guards cancel: in prefill within one block of 512 tokens, in decode within one token; what was computed
    stays cached."""
    with engine_on(model) as engine:
        blocks = []
        stop_in_prefill = lambda: len(blocks) > 1  # noqa: E731
        emit = lambda e: blocks.append(e) if isinstance(e, PrefillProgress) else None  # noqa: E731
        result = ask(engine, prompt(2000), durable=False, emit=emit, cancelled=stop_in_prefill)
        assert (result.finish_reason, result.token_ids) == ("cancelled", ())
        assert blocks[-1].done <= 512
        assert ask(engine, prompt(2000), durable=False).usage.reused_tokens == 512
        count = iter(range(100))
        result = ask(
            engine, prompt(20, seed=4), durable=False, cancelled=lambda: next(count) > 4, max_tokens=50
        )
        assert (result.finish_reason, len(result.token_ids)) == ("cancelled", 5)


def test_full_disk_keeps_the_answer(model, tmp_path):
    """Guards rule 6 of the store: with no room on disk the tokens are the same, and it is said once."""
    ids = prompt(400)
    with engine_on(model) as engine:
        want = ask(engine, ids, durable=False)
    with engine_on(model, tmp_path / "d", disk_budget=100_000) as engine:
        got = ask(engine, ids)
        assert got.token_ids == want.token_ids
        assert len(got.notices) == 1
        assert "disk" in got.notices[0]


def test_quota_drops_the_longest_unused(model, tmp_path):
    """Guards the disk limit: older conversations lose their KV, and are recomputed to the same answer."""
    column = 3 * LEAF_BYTES
    with engine_on(model, tmp_path / "d", disk_budget=70 * column + 200_000, device_leaves=300) as engine:
        ids = prompt(400)
        want = ask(engine, ids, sequence_id=b"a" * 16)
        for n in range(1, 6):
            ask(engine, prompt(400, seed=n), sequence_id=bytes([n]) * 16)
        assert engine.cache_use().disk_bytes <= 70 * column + 200_000
        assert ask(engine, ids, sequence_id=b"a" * 16).token_ids == want.token_ids


def test_forget_leaves_nothing(model, tmp_path):
    """Guards forget: neither memory nor disk holds the sequence afterwards."""
    with engine_on(model, tmp_path / "d") as engine:
        ask(engine, prompt(300))
        engine.release(b"s" * 16, forget=True)
        assert engine.cache_use().device_bytes == engine.cache_use().host_bytes == 0
        assert list((tmp_path / "d").glob("seg-*.kv")) == []
        assert ask(engine, prompt(300)).usage.reused_tokens == 0


def test_too_small_a_device(model):
    """Guards start-up: a limit in which no step fits is refused with the size that would do."""
    with pytest.raises(ConfigError, match="too small"), engine_on(model, device_leaves=10):
        pass


def test_every_leaf_is_written_once(model, tmp_path):
    """Guards the promise on wear: over 50 turns every leaf is written once, whatever was written before."""
    with engine_on(model, tmp_path / "d") as engine:
        ids = []
        for turn in range(50):
            ids += prompt(64 + turn % 20, seed=turn)
            ask(engine, ids, max_tokens=1)
        store = engine._residency.mover.disk.store
        assert store.stats().appended_leaf_bytes == len(ids) // 16 * 3 * LEAF_BYTES


def test_stop_ids_end_the_answer(model):
    """Guards the end of an answer: the end token is counted, and nothing comes after it."""
    with engine_on(model) as engine:
        free = ask(engine, prompt(30), durable=False, max_tokens=10)
        end = free.token_ids[4]
        cut = free.token_ids.index(end)
        result = ask(engine, prompt(30), durable=False, max_tokens=10, stop_ids=frozenset([end]))
        assert (result.finish_reason, result.token_ids) == ("stop", free.token_ids[: cut + 1])


def test_logits_are_finite_for_one_token(model):
    """Guards the empty past: a context of one token has no leaf to reuse and no block before it."""
    with engine_on(model) as engine:
        seen = Recorder(engine)
        ask(engine, [5], durable=False, max_tokens=3)
        assert torch.isfinite(seen.all()).all()


def test_what_prefill_costs_follows_from_the_shape(model, tmp_path):
    """Guards eviction's weights: attention catches up with the weights where it has as many multiplications."""
    cost = prefill_cost(model.decoder.config)
    c = model.decoder.config
    weights = 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads) + 3 * c.hidden_size * c.ffn_size
    even = weights / (2 * c.num_heads * c.head_dim)  # tokens before, where both parts are equal
    assert cost.linear_s == pytest.approx(cost.quadratic_s * even)
    with engine_on(model, tmp_path / "d") as engine:
        assert engine._residency.mover.disk.store._space.cost == cost


def test_what_moved_and_where_it_lies_is_told(model, tmp_path):
    """Guards the map and the list that a front end shows: each column has one letter, its highest tier; what went
    down says why; nothing is claimed of a sequence that is not warm.
    """
    with engine_on(model, tmp_path / "d", device_leaves=60, host_leaves=30) as engine:
        first = ask(engine, prompt(600), max_tokens=8)
        letters = engine.where(b"s" * 16)
        assert len(letters) == -(-(600 + len(first.token_ids) - 1) // 16)
        assert set(letters) == {"D", "H", "S"}
        device, host = letters.count("D"), letters.count("H")
        assert (device * 3 <= 60, host * 3 <= 30) == (True, True)
        moves = [move for id_, move in engine.moves() if id_ == b"s" * 16]
        assert {move.kind for move in moves} == {"demoted"}
        assert sum(move.num_tokens for move in moves) >= 16 * (len(letters) - device)
        assert all("device limit" in move.why for move in moves)
        assert engine.where(b"x" * 16) == ""


def test_an_idle_sequence_whose_tail_has_no_room_below_leaves_the_device(model, tmp_path):
    """Guards the room that was asked for: where the unwritten tail had to be evicted, the columns before it, which
    are on disk, kept theirs and the next conversation was refused. And what is told of it: each column once.
    """
    with engine_on(model, tmp_path / "d", device_leaves=120, host_leaves=30) as engine:
        ask(engine, prompt(160), max_tokens=1)
        residency = engine._residency
        sequence = residency.sequences[b"s" * 16]
        written = sequence.num_written
        residency.mover.disk.is_writable = False
        residency.activate(sequence)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(residency, "flush", lambda *_, **__: False)
            ask(engine, prompt(480), max_tokens=1)
            assert sequence.num_written == written == 10
            residency.activate(None)
            residency._demote(sequence, sequence.directory.on_device()[::-1])
        assert len(sequence.directory.on_device()) == 0
        assert sequence.num_full < 30
        told = {move.kind: move.num_tokens // 16 for _, move in engine.moves()}
        assert told["demoted"] == sequence.num_full
        assert told["evicted"] == 30 - sequence.num_full


def test_host_copies_that_are_not_on_disk_are_not_told_to_be_dropped(model, tmp_path):
    """Guards the list of moves: it told of all the host held, though only what lies on disk was given up."""
    with engine_on(model, tmp_path / "d", in_place=False, device_leaves=200, host_leaves=200) as engine:
        ask(engine, prompt(160), max_tokens=1)
        residency = engine._residency
        sequence = residency.sequences[b"s" * 16]
        residency.mover.demote_to_host(sequence, sequence.directory.on_device())
        sequence.num_written = 4
        residency._drop_own(sequence, 1000, "because")
        assert [move.num_tokens for _, move in engine.moves()] == [4 * 16]
        assert sequence.directory.on_host().tolist() == [4, 5, 6, 7, 8, 9]
        before = sequence.directory.version
        residency._drop_own(sequence, 1000, "because")
        assert sequence.directory.version == before, "tables were made anew for nothing"
        assert len(engine.moves()) == 1


def test_records_of_a_long_turn_begin_with_a_node(model, tmp_path):
    """Guards what a resume reads: low-bit keys lie in pieces of 8 columns of their record, so a record that begins
    inside a node makes it two pieces to read; only what begins a turn may."""
    ids = prompt(1600)
    with engine_on(model, tmp_path / "d") as engine:
        ask(engine, ids[:104], max_tokens=1)
        ask(engine, ids, max_tokens=1)
        places = engine._residency.sequences[b"s" * 16].directory.places
        starts = [column for column in range(100) if places[column].leaf == 0]
    assert starts[:2] == [0, 6], "one record of each turn's first columns"
    assert len(starts) > 4
    assert all(column % 8 == 0 for column in starts[2:])
