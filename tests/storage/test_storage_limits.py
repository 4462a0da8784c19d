"""Quota, free-space floor, a full or failing drive, what forgetting leaves, and how much is written."""

from __future__ import annotations

import errno
import os

import pytest
from storage_fixtures import OTHER, SEQUENCE, SMOL, TINY, Model, open_store, segments_in

from edgekv_storage import DiskFull, QuotaExceeded, StoreOff, WriteFailed
from edgekv_storage.io import disk as disk_module

pytestmark = pytest.mark.usefixtures("encryption")


def test_the_quota_is_a_limit_and_eviction_frees_it(data_dir):
    """Guards the disk limit, preallocated blocks included, and that a refused append changes nothing."""
    model, other = Model(TINY), Model(TINY, OTHER)
    quota = 400_000
    with open_store(data_dir, quota_bytes=quota) as store:
        other.append(store, 3)
        while True:
            kept = len(model.keys)
            try:
                model.append(store, 4)
            except QuotaExceeded:
                break
            blocks = sum(f.stat().st_blocks * 512 for f in segments_in(data_dir))
            assert blocks <= quota
            assert store.live_bytes <= quota
        assert len(model.find(store)) == kept
        assert store.evict(store.live_bytes - 1, keep=[SEQUENCE]) == [OTHER]
        model.append(store, 1)
        assert store.check() == []


def test_an_eviction_that_cannot_be_enough_evicts_nothing(data_dir):
    """Guards other conversations: they were all dropped for a target that what is kept exceeds alone."""
    model, other = Model(TINY), Model(TINY, OTHER, seed=40)
    with open_store(data_dir) as store:
        model.append(store, 4)
        other.append(store, 4)
        kept = store.sequences()[SEQUENCE]
        assert store.evict(kept - 1, keep=[SEQUENCE]) == []
        assert store.evict(-1) == []
        assert len(other.find(store)) == 4
        assert store.evict(kept, keep=[SEQUENCE]) == [OTHER]


def _three(data_dir, **options):
    """A store with three conversations, `c` appended to last."""
    models = {name: Model(TINY, name * 16, seed=40 + name[0]) for name in (b"a", b"b", b"c")}
    store = open_store(data_dir, **options)
    for model in models.values():
        model.append(store, 3)
    return store, models


@pytest.mark.parametrize("restarted", [False, True])
def test_eviction_takes_what_was_not_used_for_longest(data_dir, restarted):
    """Guards long conversations that are read daily: the one begun first went first, whatever its use."""
    store, models = _three(data_dir)
    models[b"a"].find(store)
    models[b"b"].append(store, 1)
    models[b"a"].find(store)
    expected = [b"c" * 16, b"b" * 16, b"a" * 16]
    if restarted:
        store.close()
        store = open_store(data_dir)
    with store:
        assert list(store.sequences()) == expected
        assert store.evict(store.live_bytes - 1) == expected[:1]


def test_a_lower_quota_is_kept_from_the_start(data_dir):
    """Guards the limit on disk: what an earlier, higher one had let in stayed for ever."""
    store, models = _three(data_dir)
    models[b"a"].find(store)
    quota = store.live_bytes - 1
    store.close()
    with open_store(data_dir, quota_bytes=quota) as store:
        assert store.live_bytes <= quota
        assert list(store.sequences()) == [b"c" * 16, b"a" * 16]
        (notice,) = store.take_notices()
        assert "KV of 1 conversation(s)" in notice
        assert len(models[b"a"].find(store)) == 3
    assert len(segments_in(data_dir)) == 2


def test_the_free_space_floor(data_dir):
    """Guards the user's drive: with less free than the floor, nothing is written."""
    with open_store(data_dir, free_floor_bytes=1 << 60) as store:
        with pytest.raises(DiskFull, match="free some space"):
            Model(TINY).append(store, 1)
        assert segments_in(data_dir) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_drive_in_mid_record(data_dir, monkeypatch, code):
    """Guards the cut back to the last whole record, and that another segment goes on when there is room again."""
    model = Model(TINY)
    real = os.pwritev

    def first_bytes_then_full(fd, buffers, offset):
        if offset > first_end:
            raise OSError(code, os.strerror(code))
        return real(fd, [memoryview(buffers[0])[:1000]], offset)

    with open_store(data_dir) as store:
        model.append(store, 2)
        first_end = segments_in(data_dir)[0].stat().st_size
        monkeypatch.setattr(disk_module.os, "pwritev", first_bytes_then_full)
        with pytest.raises(DiskFull):
            model.append(store, 2)
        monkeypatch.setattr(disk_module.os, "pwritev", real)
        assert segments_in(data_dir)[0].stat().st_size == first_end
        model.append(store, 3)
        assert model.read(store, model.find(store)) == (15, 0)
        assert store.check() == []


def test_short_writes_are_carried_on(data_dir, monkeypatch):
    """Guards a drive that takes 700 bytes at a time."""
    real = os.pwritev
    monkeypatch.setattr(disk_module.os, "pwritev", lambda fd, b, at: real(fd, [memoryview(b[0])[:700]], at))
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 3)
        assert model.read(store, model.find(store)) == (9, 0)
        assert store.check() == []


def test_a_drive_error_closes_the_segment_and_three_the_tier(data_dir, monkeypatch):
    """Guards the fsync rules: never the same segment again, and off after three in a minute."""
    calls = []

    def broken(fd):
        calls.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk_module.os, "fdatasync", broken)
    model = Model(TINY)
    with open_store(data_dir) as store:
        for turn in range(3):
            model.append(store, 1)
            store.flush()
            assert len(calls) == turn + 1
            assert len(segments_in(data_dir)) == turn + 1
        with pytest.raises(StoreOff, match="turned itself off"):
            model.append(store, 1)
        assert model.read(store, model.find(store)) == (9, 0)
        assert store.off_reason in store.take_notices()
        assert store.check() == []
    monkeypatch.undo()
    with open_store(data_dir) as store:
        assert len(model.find(store)) == 3


def test_a_write_error_drops_the_append(data_dir, monkeypatch):
    """Guards that a leaf is not findable when its write failed."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 1)

        def broken(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(disk_module.os, "pwritev", broken)
        with pytest.raises(WriteFailed):
            model.append(store, 1)
        monkeypatch.undo()
        assert len(model.find(store)) == 1
        model.append(store, 1)
        assert model.read(store, model.find(store)) == (6, 0)


def test_forgetting_leaves_no_bytes(data_dir):
    """Guards privacy: after forget no file of the directory holds the leaves, ids or keys of the sequence."""
    model, other = Model(TINY), Model(TINY, OTHER, seed=40)
    with open_store(data_dir) as store:
        model.append(store, 2)
        other.append(store, 2)
        model.append(store, 2, sections={1: b"CANARY" * 10})
        store.flush()
        canaries = [*model.keys, model.ids[:16].tobytes(), model.ids[32:48].tobytes(), b"CANARY", SEQUENCE]
        assert store.forget(SEQUENCE)
        assert model.find(store) == []
        for when in ("open", "closed"):
            for file in data_dir.rglob("*"):
                data = file.read_bytes() if file.is_file() else b""
                assert [c for c in canaries if c in data] == [], f"{file.name} while {when}"
            store.close()
    with open_store(data_dir) as store:
        assert model.find(store) == []
        assert len(other.find(store)) == 2


def test_write_amplification_of_fifty_turns(data_dir):
    """Guards the wear promise: segment bytes / leaf bytes at most 1.1 over 50 turns of 64 to 112 tokens."""
    model = Model(SMOL)
    with open_store(data_dir, SMOL) as store:
        for turn in range(50):
            model.append(store, 4 + turn % 4)
    stats = store.stats()
    on_disk = sum(f.stat().st_size for f in segments_in(data_dir))
    assert stats.appended_leaf_bytes == len(model.keys) * 30 * 12288
    assert stats.segment_bytes_written == on_disk
    assert stats.segment_bytes_written / stats.appended_leaf_bytes < 1.01


def test_preallocation_is_given_back(data_dir):
    """Guards sealed segments against keeping blocks behind their end."""
    with open_store(data_dir) as store:
        Model(TINY).append(store, 1)
        assert segments_in(data_dir)[0].stat().st_blocks * 512 >= 4 << 20
    path = segments_in(data_dir)[0]
    assert path.stat().st_blocks * 512 <= path.stat().st_size + 4096
