"""Compaction: what is of use moves, what is not goes, nobody is served wrong bytes, limits hold meanwhile."""

from __future__ import annotations

import errno
import os

import pytest
from patience import PATIENCE_S
from storage_fixtures import OTHER, SEQUENCE, TINY, Model, open_store, segments_in

from edgekv_storage import LeafRead, Store, known_losses
from edgekv_storage.io import disk as disk_module


def _mostly_dead(store: Store, keep: int = 2) -> Model:
    """A sealed segment of 40 leaves of which the first `keep` are of use, and a second one."""
    model = Model(TINY)
    for count in (keep, 40 - keep):
        model.append(store, count)
    store.flush()
    store._writers.seal(SEQUENCE)
    places = model.find(store)
    store._on_damage(places[keep:])
    model.ids = model.ids[: 16 * keep]
    return model


def _tidy(store: Store) -> None:
    for _ in range(100):
        if not store.tidy():
            return
    raise AssertionError("tidying never ends")


@pytest.mark.parametrize("keep", [0, 2])
def test_a_mostly_dead_segment_is_replaced(data_dir, keep):
    """Guards disk space: bytes that nobody can find stayed until the whole conversation was forgotten."""
    with open_store(data_dir) as store:
        model = _mostly_dead(store, max(keep, 1))
        if keep == 0:
            store._on_damage(model.find(store))
            model.ids = model.ids[:0]
        old = segments_in(data_dir)
        before = store.live_bytes
        _tidy(store)
        new = segments_in(data_dir)
        assert old[0] not in new
        assert store.live_bytes < before / 4
        assert model.read(store, model.find(store)) == (3 * keep, 0)
        assert store.check() == []
    with open_store(data_dir) as store:
        assert model.read(store, model.find(store)) == (3 * keep, 0)
        assert store.take_notices() == []


def test_old_places_lead_to_the_copy(data_dir):
    """Guards a conversation that is running: its places are those of before the compaction."""
    with open_store(data_dir) as store:
        model = _mostly_dead(store, 3)
        places = model.find(store)
        for _ in range(2):
            _tidy(store)
            assert model.find(store)[0].segment != places[0].segment
            assert model.read(store, places) == (9, 0)
            out = memoryview(bytearray(3 * TINY.leaf_bytes))
            transfer = store.read([LeafRead(places[0], 1, 3, out)])
            assert transfer.wait(PATIENCE_S)
            assert transfer.result == []
            store._on_damage(model.find(store)[1:])  # the copy is mostly dead in its turn
            model.ids, places = model.ids[:16], places[:1]
            store._writers.seal(SEQUENCE)
            _check_fault(store, places[0]._replace(leaf=2))
            break


def test_a_sequence_that_nobody_asked_for_yet(data_dir):
    """Guards the first look at a sequence after a restart: compaction once published its copies only."""
    with open_store(data_dir) as store:
        model = _mostly_dead(store, 2)
        model.append(store, 5)
    with open_store(data_dir) as store:
        _tidy(store)
        assert model.read(store, model.find(store)) == (21, 0)
        assert len(segments_in(data_dir)) == 2


def _check_fault(store: Store, place) -> None:
    """A leaf that was left behind is a miss, not an error and not another's bytes."""
    transfer = store.read([LeafRead(place, 0, 1, memoryview(bytearray(TINY.leaf_bytes)))])
    assert transfer.wait(PATIENCE_S)
    assert len(transfer.result) in (0, 1)


def test_a_read_that_was_asked_for_before_still_succeeds(data_dir):
    """Guards readers in flight: the old file's name goes while they hold its places."""
    with open_store(data_dir) as store:
        model = _mostly_dead(store, 2)
        place = model.find(store)[0]
        file = store._readers.files.get(store._catalog.segments[place.segment])
        _tidy(store)
        assert not file.path.exists()
        assert len(file.read(100, 0)) == 100


def test_damaged_leaves_are_left_behind(data_dir):
    """Guards compaction against carrying damage on under a new checksum."""
    with open_store(data_dir) as store:
        model = _mostly_dead(store, 4)
        place = model.find(store)[2]
        known = store._catalog.record(place.segment, place.record)
        path = store._catalog.segments[place.segment].path
        at = known.entry.offset + known.tables.kv_offset(1, 2)
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 4]))
            os.fsync(file.fileno())
        _tidy(store)
        model.ids = model.ids[:32]
        assert model.read(store, model.find(store)) == (6, 0)
        assert store.check() == []


def test_the_quota_holds_while_copying(data_dir):
    """Guards the limit on disk: the copy and its source are there together; without room nothing is copied."""
    with open_store(data_dir) as store:
        model = _mostly_dead(store, 8)
        other = Model(TINY, OTHER)
        other.append(store, 3)
        store._writers.quota_bytes = store.live_bytes + 8192
        before = segments_in(data_dir)
        _tidy(store)
        assert segments_in(data_dir) == before
        assert store.live_bytes <= store._writers.quota_bytes
        assert model.read(store, model.find(store)) == (24, 0)
        assert store.evict(store.live_bytes // 2) == [SEQUENCE], "what is mostly dead goes first"
        assert len(other.find(store)) == 3


@pytest.mark.parametrize("broken", ["pwritev", "fdatasync"])
def test_a_drive_error_while_copying_keeps_the_source(data_dir, monkeypatch, broken):
    """Guards the order: the old file goes when the new one is safe, not before."""
    with open_store(data_dir) as store:
        model = _mostly_dead(store, 2)
        old = segments_in(data_dir)

        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(disk_module.os, broken, fail)
        _tidy(store)
        monkeypatch.undo()
        assert segments_in(data_dir) == old
        assert model.read(store, model.find(store)) == (6, 0)
        assert any("Input/output error" in notice for notice in store.take_notices())


def test_closing_in_the_middle_of_a_copy(data_dir):
    """Guards a quick end: the half-made copy goes, its source stays."""
    with open_store(data_dir) as store:
        model = _mostly_dead(store, 4)
        old = segments_in(data_dir)
        assert store.tidy()  # begins
        assert store.tidy()  # copies
        assert len(segments_in(data_dir)) == len(old) + 1
    assert segments_in(data_dir) == old
    with open_store(data_dir) as store:
        assert model.read(store, model.find(store)) == (12, 0)


def test_an_idle_store_tidies_by_itself(data_dir, monkeypatch):
    """Guards the thread that does it: it has to notice that nothing is written any more."""
    monkeypatch.setattr("edgekv_storage.store.flusher.FLUSH_SECONDS", 0.02)
    with open_store(data_dir) as store:
        _mostly_dead(store, 2)
        old = segments_in(data_dir)[0]
        Model(TINY, OTHER).append(store, 1)
        for _ in range(500):
            if not old.exists():
                break
            store._flusher._thread.join(0.01)
        assert not old.exists()


def test_only_tails_go(data_dir):
    """Guards eviction: a leaf without its prefix is useless, so the beginning is what must stay."""
    with open_store(data_dir, quota_bytes=4 << 20) as store:  # segments of 256 KiB
        model = Model(TINY)
        for _ in range(30):
            model.append(store, 10)
        store.flush()
        num_segments = len(segments_in(data_dir))
        assert num_segments > 3
        assert store.evict(store.live_bytes - 1) == [SEQUENCE]
        assert len(segments_in(data_dir)) == num_segments - 1
        found = len(model.find(store))
        assert 200 < found < 300
        (loss,) = store.forgotten(SEQUENCE)
        assert (loss.num_tokens, loss.why) == (16 * (300 - found), "the disk limit was reached")
        assert store.check() == []
    with open_store(data_dir, quota_bytes=4 << 20) as store:
        assert store.forgotten(SEQUENCE) == [loss]
        assert len(model.find(store)) == found
        model.ids = model.ids[: 16 * found]
        model.append(store, 1)
        assert store.forgotten(SEQUENCE) == []


def test_an_abandoned_branch_goes_before_the_running_one(data_dir):
    """Guards edits: the old branch was written first but is not read any more."""
    with open_store(data_dir, quota_bytes=4 << 20) as store:
        trunk = Model(TINY)
        trunk.append(store, 20)
        store._writers.seal(SEQUENCE)
        old = Model(TINY, seed=100, ids=trunk.ids.copy())
        old.append(store, 20)
        store._writers.seal(SEQUENCE)
        new = Model(TINY, seed=200, ids=trunk.ids.copy())
        new.append(store, 20)
        new.find(store)
        store.evict(store.live_bytes - 1)
        assert len(old.find(store)) == 20
        assert len(new.find(store)) == 40


def test_what_was_given_up_is_told_without_a_store(data_dir):
    """Guards `edgekv conversations`: it lists beside a running program, and must not trust a damaged index."""
    with open_store(data_dir) as store:
        Model(TINY).append(store, 3)
        Model(TINY, OTHER).append(store, 3)
        store.evict(store.live_bytes // 2)
        (sequence_id,) = {SEQUENCE, OTHER} - set(store.sequences())
        assert known_losses(data_dir)[sequence_id] == store.forgotten(sequence_id)
        store.forget(sequence_id)
        assert known_losses(data_dir) == {}
    (data_dir / "index.db").write_bytes(b"nonsense" * 600)
    assert known_losses(data_dir) == {}
