"""What passes (no memory, too many open files, an append in progress) must cost neither leaves nor the index."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from dataclasses import replace

import pytest
from patience import PATIENCE_S
from storage_fixtures import OTHER, SEQUENCE, TINY, FixedKeys, Model, open_store, segments_in

from edgekv_storage.io.disk import OsDisk
from edgekv_storage.segments.format import PAGE, SegmentHeader
from edgekv_storage.space import compaction
from edgekv_storage.store import reading
from edgekv_storage.store.catalog import Catalog


def _refusing(code: int):
    def refuse(*_args, **_options):
        raise OSError(code, os.strerror(code))

    return refuse


def _tidy(store) -> None:
    for _ in range(50):
        if not store.tidy():
            return
    raise AssertionError("tidying never ends")


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EMFILE])
def test_a_read_that_failed_for_now_costs_no_leaf(data_dir, monkeypatch, code, is_known):
    """Guards compaction: when a read failed for want of memory it dropped good leaves and deleted their source."""
    monkeypatch.setattr(compaction, "MIN_LIVE", 2.0)  # everything is copied
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 8)
    with open_store(data_dir, io="pread") as store:
        if is_known:
            assert len(model.find(store)) == 8
        for call in ("pread", "preadv"):
            monkeypatch.setattr(OsDisk, call, _refusing(code))
        _tidy(store)
        monkeypatch.undo()
        assert model.read(store, model.find(store)) == (24, 0)
        assert store.stats().damaged_leaves == 0
        assert store.forgotten(SEQUENCE) == []
        assert len(segments_in(data_dir)) == 1
        assert store.check() == []


def test_damage_met_while_copying_leaves_the_rest(data_dir, monkeypatch):
    """Guards what is told: leaves behind a damaged one were dropped by compaction and never counted as lost."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 8)
        place = model.find(store)[5]
        entry = store._catalog.record(place.segment, place.record)
        assert entry is not None
        assert entry.tables is not None
        at = entry.entry.offset + entry.tables.kv_offset(1, 5)
    data = bytearray(segments_in(data_dir)[0].read_bytes())
    data[at] ^= 1
    segments_in(data_dir)[0].write_bytes(data)
    with open_store(data_dir) as store:
        monkeypatch.setattr(compaction, "MIN_LIVE", 0.999)
        for _ in range(20):
            store.tidy()
        monkeypatch.undo()
        assert model.read(store, model.find(store)) == (15, 0)
        (loss,) = store.forgotten(SEQUENCE)
        assert loss.num_tokens == 3 * 16
        assert store.check() == []


def test_an_append_in_progress_is_no_missing_row(data_dir, monkeypatch):
    """Guards index.db: tidying between writing a record and publishing it deleted the index and what was lost."""
    entered, go_on = threading.Event(), threading.Event()
    add_record = Catalog.add_record

    def wait(self, segment, number, known):
        if threading.current_thread() is appending:
            catalog_lock.release()
            entered.set()
            go_on.wait(PATIENCE_S)
            catalog_lock.acquire()
        return add_record(self, segment, number, known)

    with open_store(data_dir) as store:
        model = Model(TINY)
        model.append(store, 4)
        catalog_lock = store._catalog.lock
        appending = threading.Thread(target=lambda: model.append(store, 4))
        monkeypatch.setattr(Catalog, "add_record", wait)
        appending.start()
        assert entered.wait(PATIENCE_S)
        store._catalog.dirty.add(SEQUENCE)
        for _ in range(3):
            store.tidy()
        go_on.set()
        appending.join()
        assert store.take_notices() == []
        assert model.read(store, model.find(store)) == (24, 0)
    assert (data_dir / "index.db").exists()


def test_an_interrupt_between_writing_and_publishing(data_dir, monkeypatch):
    """Guards index.db at Ctrl-C: a record in the segment and in no row made the next start drop the index."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 2)
        monkeypatch.setattr(Catalog, "add_record", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.append(store, 2)
        monkeypatch.undo()
        Model(TINY, OTHER, seed=50).append(store, 1)
        store._on_damage(Model.find(model, store)[1:])
    for _ in range(2):
        with open_store(data_dir) as store:
            assert len(model.find(store)) == 1  # what was damaged is remembered
            assert store.take_notices() == []
            assert store.forgotten(SEQUENCE)


def _interrupted(*_args):
    raise KeyboardInterrupt


def test_two_directories_merged(data_dir, tmp_path):
    """Guards forgetting: of two segments with one number, forgetting one conversation deleted the other's file."""
    one, two = Model(TINY), Model(TINY, OTHER, seed=50)
    with open_store(data_dir) as store:
        one.append(store, 3)
    with open_store(tmp_path / "second") as store:
        two.append(store, 3)
    (theirs,) = segments_in(tmp_path / "second")
    shutil.copy(theirs, data_dir / theirs.name)
    with open_store(data_dir) as store:
        (notice,) = store.take_notices()
        assert notice.startswith(f"{theirs.name} cannot be believed (another segment has its number)")
        assert [path.name for path in (data_dir / "quarantine").iterdir()] == [theirs.name]
        assert one.read(store, one.find(store)) == (9, 0)
        assert store.forget(SEQUENCE)
    assert segments_in(data_dir) == []
    assert list((data_dir / "quarantine").iterdir()) == []


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_segments_with_one_number_the_one_that_opens_is_kept(data_dir, tmp_path, is_first):
    """Guards a rebuilt index: a planted file with an earlier name took the real one's place."""
    real, planted = Model(TINY), Model(TINY, OTHER, seed=50)
    with open_store(data_dir, keys=FixedKeys()) as store:
        real.append(store, 3)
    other = tmp_path / "second"
    with open_store(other, keys=FixedKeys()) as store:
        planted.append(store, 3)
    (ours,), (theirs,) = segments_in(data_dir), segments_in(other)
    name = ours.name[:21] + ("0" * 16 if is_first else "f" * 16) + ".kv"
    header = SegmentHeader.unpack(theirs.read_bytes()[:PAGE])
    header = replace(header, random=int(name[21:37], 16))  # right in itself, and no key opens what follows
    (data_dir / name).write_bytes(header.pack() + theirs.read_bytes()[PAGE:])
    (data_dir / "index.db").unlink()
    with open_store(data_dir, keys=FixedKeys()) as store:
        assert any(name in notice for notice in store.take_notices())
        assert segments_in(data_dir) == [ours]
        assert (store.forgotten(SEQUENCE), store.forgotten(OTHER)) == ([], [])


@pytest.mark.parametrize("has_index", [True, False])
def test_what_a_twin_held_is_counted_as_lost(data_dir, tmp_path, has_index):
    """Guards the person: leaves of a segment set aside for its number went without a word."""
    with open_store(data_dir) as store:
        Model(TINY).append(store, 3)
    with open_store(tmp_path / "second") as store:
        Model(TINY, OTHER, seed=50).append(store, 5)
    (theirs,) = segments_in(tmp_path / "second")
    shutil.copy(theirs, data_dir / theirs.name)
    if not has_index:
        (data_dir / "index.db").unlink()
    for _ in range(2):
        with open_store(data_dir) as store:
            lost = [(i, loss.num_tokens) for i in (SEQUENCE, OTHER) for loss in store.forgotten(i)]
            assert lost in ([(OTHER, 80)], [(SEQUENCE, 48)])
            assert lost == [(OTHER, 80)] or not has_index


def test_errors_of_sealing_in_passing_are_told(data_dir, monkeypatch):
    """Guards the user: two failed syncs went unsaid, and with the third the disk tier turned itself off."""
    monkeypatch.setattr("edgekv_storage.store.writers._MAX_OPEN", 1)
    with open_store(data_dir) as store:
        Model(TINY).append(store, 1)
        monkeypatch.setattr(OsDisk, "sync", _refusing(errno.EIO))
        Model(TINY, OTHER).append(store, 1)
        (notice,) = store.take_notices()
        assert "Input/output error" in notice
        monkeypatch.undo()


def test_too_many_open_files_at_a_flush(data_dir, monkeypatch):
    """Guards `flush`, which promises notices: it raised, and lost the descriptors it had made so far."""
    with open_store(data_dir) as store:
        models = [Model(TINY), Model(TINY, OTHER, seed=50)]
        for model in models:
            model.append(store, 2)
        made: list[int] = []
        dup, closed = OsDisk.dup, []

        def once(disk, fd):
            if made:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            made.append(dup(disk, fd))
            return made[0]

        close = OsDisk.close
        monkeypatch.setattr(OsDisk, "dup", once)
        monkeypatch.setattr(OsDisk, "close", lambda disk, fd: (closed.append(fd), close(disk, fd))[1])
        store.flush()
        monkeypatch.undo()
        assert closed == made
        (notice,) = store.take_notices()
        assert "Too many open files" in notice
        store.flush()
        assert all(w.segment.synced == w.segment.end for w in store._writers._open.values())
        assert store.take_notices() == []


@pytest.mark.parametrize("io", ["pread", "uring"])
def test_our_own_failure_is_no_damage(data_dir, monkeypatch, io):
    """Guards leaves against us: no memory for a read marked every leaf of the record as dead, for good."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 4)
    with open_store(data_dir, io=io) as store:
        monkeypatch.setattr(reading.TablesRead, "begin", _raising(MemoryError()))
        assert model.find(store) == []
        monkeypatch.undo()
        assert store.stats().damaged_leaves == 0
    with open_store(data_dir, io=io) as store:
        assert model.read(store, model.find(store)) == (12, 0)


def test_what_compaction_could_not_copy_keeps_its_source(data_dir, monkeypatch):
    """Guards good leaves: a range that met an error of ours counted as copied, and its source was deleted."""
    monkeypatch.setattr(compaction, "MIN_LIVE", 2.0)  # everything is copied
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 8)
    with open_store(data_dir, io="pread") as store:
        monkeypatch.setattr(compaction.Compactor, "_write", _raising(MemoryError()))
        with pytest.raises(MemoryError):
            _tidy(store)
        monkeypatch.undo()
        assert model.read(store, model.find(store)) == (24, 0)
        assert store.forgotten(SEQUENCE) == []
        assert store.check() == []


@pytest.mark.parametrize("io", ["pread", "uring"])
def test_no_thread_can_be_started(data_dir, monkeypatch, io):
    """Guards waiters: a thread that did not start was remembered as running, and reads hung for ever."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 2)
    with open_store(data_dir, io=io) as store:
        monkeypatch.setattr(threading.Thread, "start", _raising(RuntimeError("can't start new thread")))
        assert model.find(store) == []
        monkeypatch.undo()
        assert model.read(store, model.find(store)) == (6, 0)


def test_notices_are_told_once_and_all(data_dir):
    """Guards notices that another thread adds while they are taken."""
    with open_store(data_dir) as store:
        told, count = [], 20_000
        writer = threading.Thread(target=lambda: [store._notices.append(str(i)) for i in range(count)])
        writer.start()
        while writer.is_alive():
            told += store.take_notices()
        told += store.take_notices()
        assert told == [str(i) for i in range(count)]


def _raising(error):
    def refuse(*_args, **_options):
        raise error

    return refuse
