"""A data directory that others wrote into, that cannot be written, that vanishes, and a clock that jumps."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import time

import pytest
import xxhash
from powerloss import Chat, open_simulated
from storage_fixtures import ODD, OTHER, SEQUENCE, TINY, Model, open_store, segments_in

from edgekv_storage import DiskFull, StorageError, Store, Unwritable
from edgekv_storage.io.faulty import Fault, FaultyDisk
from edgekv_storage.segments.format import PAGE, SegmentHeader

YEARS = 10 * 365 * 86_400


@pytest.fixture
def model(data_dir) -> Model:
    """A closed store with one conversation of four leaves."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 4)
    return model


def _whole(store: Store, model: Model) -> bool:
    return model.read(store, model.find(store)) == (3 * len(model.keys), 0)


def _name(number: int) -> str:
    return f"seg-{number:016x}-{0:016x}.kv"


def test_planted_things_under_the_name_of_a_segment(data_dir, model, tmp_path):
    """Guards the opening: a pipe made it wait for ever, a link led out of the directory."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.mkfifo(data_dir / _name(2))
    (data_dir / _name(3)).mkdir()
    (data_dir / _name(4)).symlink_to(victim)
    (data_dir / _name(5)).symlink_to(segments_in(data_dir)[0])
    for _ in range(2):
        with open_store(data_dir) as store:
            assert _whole(store, model)
            notices = store.take_notices()
            assert len(notices) == 4
            assert all("is not a plain file and was left alone" in notice for notice in notices)
            assert store.check() == []
            store.forget(OTHER)
    assert victim.read_bytes() == b"precious"
    assert stat.S_ISFIFO((data_dir / _name(2)).stat().st_mode)


def test_names_that_are_no_segments_are_not_touched(data_dir, model):
    """Guards other people's files: only names that we give are opened at all."""
    names = [
        "seg-1-2.kv",
        _name(9).upper(),
        _name(9) + ".bak",
        "seg-.kv",
        "notes.txt",
        "seg-" + "0" * 200 + ".kv",
    ]
    for name in names:
        (data_dir / name).write_bytes(b"x" * 5000)
    with open_store(data_dir) as store:
        assert store.take_notices() == []
        assert _whole(store, model)
        store.forget(SEQUENCE)
    assert all((data_dir / name).stat().st_size == 5000 for name in names)


@pytest.mark.parametrize("content", [b"EDGEKV", os.urandom(3 * PAGE)], ids=len)
def test_foreign_files_under_the_name_of_a_segment(data_dir, model, content):
    """Guards what is not ours: it is named, left alone, and costs nothing."""
    (data_dir / _name(7)).write_bytes(content)
    with open_store(data_dir) as store:
        (notice,) = store.take_notices()
        assert notice.startswith(f"{_name(7)} was left alone: not a segment")
        assert _whole(store, model)
    assert (data_dir / _name(7)).read_bytes() == content


def test_a_huge_sparse_file_is_not_read_through(data_dir, model):
    """Guards the opening time: a terabyte of holes behind a good header took for ever."""
    header = SegmentHeader(8, 0, OTHER, TINY).pack()
    path = data_dir / _name(8)
    path.write_bytes(header)
    os.truncate(path, 1 << 40)
    before = time.process_time()
    with open_store(data_dir) as store:
        assert _whole(store, model)
        assert store.live_bytes < 1 << 20
    assert time.process_time() - before < 2


@pytest.mark.parametrize("field", range(8, 112, 4))
def test_hostile_headers(data_dir, model, field):
    """Guards every field of a segment header that is damaged or made up, its checksum repaired or not."""
    path = segments_in(data_dir)[0]
    head = bytearray(path.read_bytes()[:PAGE])
    for value in (0xFFFFFFFF, 0x7FFFFFFF):
        for repaired in (False, True):
            head[field : field + 4] = struct.pack("<I", value)
            if repaired:
                head[112:120] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(head[:112])))
            (data_dir / _name(8)).write_bytes(bytes(head) + os.urandom(PAGE))
            (data_dir / "index.db").unlink()
            with open_store(data_dir) as store:
                assert _whole(store, model)
                assert len([n for n in store.take_notices() if _name(8) in n]) == 1
            for file in [*data_dir.glob("quarantine/*"), data_dir / _name(8)]:
                file.unlink(missing_ok=True)


def test_a_segment_of_a_newer_format(data_dir, model):
    """Guards tomorrow's data: an old program must not move or delete it."""
    head = bytearray(SegmentHeader(8, 0, OTHER, TINY).pack())
    head[8] = 99
    path = data_dir / _name(8)
    path.write_bytes(bytes(head) + bytes(PAGE))
    with open_store(data_dir) as store:
        (notice,) = store.take_notices()
        assert "was left alone: segment format 99" in notice
        assert _whole(store, model)
        store.forget(OTHER)
    assert path.exists()


def test_segments_of_another_model_are_kept_and_not_found(data_dir, model):
    """Guards a change of the model: its KV means nothing to the other one, and comes back with the first."""
    with open_store(data_dir, ODD) as store:
        assert store.lookup(SEQUENCE, model.keys, model.ids) == []
        other = Model(ODD)
        other.append(store, 2)
        assert other.read(store, other.find(store)) == (10, 0)
    with open_store(data_dir) as store:
        assert _whole(store, model)


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write everywhere; the simulated one below runs always"
)
def test_a_directory_that_cannot_be_written(data_dir, model):
    """Guards a directory of somebody else: one clear line, nothing changed."""
    data_dir.chmod(0o500)
    try:
        with pytest.raises(Unwritable, match="choose another directory"):
            open_store(data_dir)
    finally:
        data_dir.chmod(0o700)


def test_a_file_system_that_turned_read_only():
    """Guards a drive that the kernel remounted: nothing more is written, everything is still read."""
    changing = frozenset({"write", "truncate", "reserve", "sync", "unlink", "rename", "sync_directory"})
    disk = FaultyDisk(1)
    with open_simulated(disk) as store:
        chat, rng = Chat(SEQUENCE), random.Random(1)
        chat.append(store, rng, 4)
        disk.faults.append(Fault(disk.calls, 1 << 40, errno.EROFS, changing))
        with pytest.raises(DiskFull, match="Read-only file system"):
            chat.append(store, rng, 4)
        with pytest.raises(Unwritable, match="Read-only file system"):
            store.forget(SEQUENCE)
    with open_simulated(disk) as store:
        assert len(chat.verify(store)) == 4


def test_a_directory_that_vanishes(data_dir):
    """Guards an unplugged drive: errors are ours, what was read stays right, closing ends."""
    model = Model(TINY)
    store = open_store(data_dir)
    model.append(store, 3)
    assert _whole(store, model)
    moved = data_dir.with_name("moved")
    data_dir.rename(moved)
    assert _whole(store, model)
    with pytest.raises(Unwritable, match="is gone"):
        model.append(store, 3)
    with pytest.raises(Unwritable):
        store.forget(OTHER) or store.forget(SEQUENCE)
    store.close()
    moved.rename(data_dir)
    with open_store(data_dir) as store:
        assert store.take_notices() is not None
        assert store.check() == []


def test_a_simulated_directory_that_vanishes():
    """Guards every call after the directory went: only StorageErrors, and the tier goes on from memory."""
    disk = FaultyDisk(1)
    store = open_simulated(disk)
    chat, rng = Chat(SEQUENCE), random.Random(1)
    chat.append(store, rng, 4)
    assert len(chat.verify(store)) == 4
    disk.vanish()
    for _ in range(3):
        with pytest.raises(StorageError):
            chat.append(store, rng, 4)
    store.flush()
    assert len(chat.verify(store)) == 4
    store.close()


@pytest.mark.parametrize("jump", [-YEARS, YEARS])
def test_a_clock_that_jumps(data_dir, monkeypatch, jump):
    """Guards the order of eviction and the groups of writes against a clock set back or ahead by years."""
    real = time.time_ns
    models = {name: Model(TINY, name * 16, seed=40 + name[0]) for name in (b"a", b"b", b"c")}
    with open_store(data_dir) as store:
        models[b"a"].append(store, 3)
        monkeypatch.setattr(time, "time_ns", lambda: real() + jump * 1_000_000_000)
        models[b"b"].append(store, 3)
        monkeypatch.setattr(time, "time_ns", real)
        models[b"c"].append(store, 3)
        models[b"a"].find(store)
        expected = [b"b" * 16, b"c" * 16, b"a" * 16]
        assert list(store.sequences()) == expected
        store.flush()
    with open_store(data_dir) as store:
        assert list(store.sequences()) == expected
        assert store.evict(store.live_bytes - 1) == expected[:1]
        assert len(models[b"a"].find(store)) == 3


def test_times_of_files_that_mean_nothing(data_dir, model):
    """Guards the order of uses against files dated 1970, 2100, and beyond what an index can hold."""
    path = segments_in(data_dir)[0]
    for seconds in (0, 4_102_444_800, 1 << 33):
        os.utime(path, (seconds, seconds))
        with open_store(data_dir) as store:
            assert _whole(store, model)
            Model(TINY, OTHER, seed=9).append(store, 1)
            assert list(store.sequences())[-1] == OTHER
            store.forget(OTHER)
