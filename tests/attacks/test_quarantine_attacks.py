"""quarantine/ as somebody else left it, and files that cannot be removed: nobody's files go, nothing is claimed."""

from __future__ import annotations

import errno
import os

import pytest
from storage_fixtures import OTHER, SEQUENCE, TINY, Model, open_store, segments_in

from edgekv.conversation.library import Library
from edgekv_storage import DataDir, KeyChain, Unwritable, check_directory, fix_directory
from edgekv_storage.io.disk import OsDisk


def _filled(data_dir, sequence_id=SEQUENCE, num_leaves=4, **options) -> Model:
    model = Model(TINY, sequence_id, **options)
    with open_store(data_dir) as store:
        model.append(store, num_leaves)
    return model


def _damage_header(path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)


def test_a_planted_link_costs_nobody_a_file(data_dir, tmp_path):
    """Guards the user's documents: `forget` and eviction deleted every file behind a link named quarantine."""
    model = _filled(data_dir)
    victim = tmp_path / "documents"
    victim.mkdir()
    names = ["letter.txt", "seg-0000000000000001-0000000000000002.kv"]
    for name in names:
        (victim / name).write_bytes(b"precious")
    (data_dir / "quarantine").symlink_to(victim)
    _filled(data_dir, OTHER, seed=9)
    _damage_header(segments_in(data_dir)[1])  # what cannot be believed must not be moved through it either
    (data_dir / "index.db").unlink()
    with open_store(data_dir) as store:
        assert "could not be moved to quarantine/" in "".join(store.take_notices())
        assert model.read(store, model.find(store)) == (12, 0)
        store.evict(0)
        assert store.forget(SEQUENCE) is False
    with DataDir.open(data_dir) as directory:
        checked = check_directory(directory, None)
        assert not any("quarantine" in note for note in checked.notes)
        with pytest.raises(NotADirectoryError):
            fix_directory(directory, None, checked)
    assert sorted(path.name for path in victim.iterdir()) == names
    assert all((victim / name).read_bytes() == b"precious" for name in names)


@pytest.mark.parametrize("kind", ["folder inside", "file", "other file inside"])
def test_odd_things_in_quarantine_stop_nothing(data_dir, kind):
    """Guards forgetting: a folder in quarantine/ made `forget` fail half way, and every start after it."""
    _filled(data_dir)
    place = data_dir / "quarantine"
    if kind == "file":
        place.write_bytes(b"mine")
    else:
        place.mkdir()
        (place / "seg-0000000000000001-0000000000000001.kv").write_bytes(b"ours")
        (place / "sub").mkdir() if kind == "folder inside" else (place / "mine.txt").write_bytes(b"mine")
    with open_store(data_dir) as store:
        assert store.forget(SEQUENCE)
        assert not store.forget(SEQUENCE)
    assert segments_in(data_dir) == []
    if kind != "file":
        assert [path.name for path in place.iterdir()] == ["sub" if kind == "folder inside" else "mine.txt"]


def test_quarantine_counts_and_goes_first(data_dir):
    """Guards the limit: with other keys at each start quarantine/ grew to four times the disk limit."""
    _filled(data_dir, num_leaves=20)
    _damage_header(segments_in(data_dir)[0])
    (data_dir / "index.db").unlink()
    model = Model(TINY, OTHER)
    with open_store(data_dir) as store:
        aside = store.live_bytes
        assert aside > 60 << 10
        model.append(store, 2)
        live = store.live_bytes
    with open_store(data_dir, quota_bytes=live) as store:
        assert store.live_bytes == live
    with open_store(data_dir, quota_bytes=live - 1) as store:
        assert store.live_bytes == live - aside
        assert "1 damaged file(s) in quarantine/ were removed" in "".join(store.take_notices())
        assert model.read(store, model.find(store)) == (6, 0)
    assert list((data_dir / "quarantine").iterdir()) == []


def test_a_file_that_could_not_be_removed_is_not_forgotten(data_dir, monkeypatch):
    """Guards `forget`: repeated after an error it said there was nothing, and a restart served everything."""
    model = Model(TINY)

    def refuse(_disk, path):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    with open_store(data_dir) as store:
        model.append(store, 3)
        live = store.live_bytes
        monkeypatch.setattr(OsDisk, "unlink", refuse)
        for _ in range(2):
            with pytest.raises(Unwritable, match=r"remove its seg-\*\.kv"):
                store.forget(SEQUENCE)
            assert model.find(store) == []
            assert store.live_bytes == live
        other = Model(TINY, OTHER, seed=50)
        other.append(store, 2)
        assert store.evict(1 << 30) == []
        monkeypatch.undo()
        assert store.forget(SEQUENCE) is True
        assert store.forget(SEQUENCE) is False
        assert len(segments_in(data_dir)) == 1
        assert other.read(store, other.find(store)) == (6, 0)
    with open_store(data_dir) as store:
        assert model.find(store) == []
        assert store.check() == []


def test_one_file_that_stays_does_not_keep_the_others(data_dir, monkeypatch):
    """Guards the rest: after one segment that could not be removed its neighbours stayed too."""
    model = _filled(data_dir)
    with open_store(data_dir) as store:
        model.append(store, 2)
        first, second = segments_in(data_dir)
        unlink = OsDisk.unlink

        def refuse(disk, path):
            if path == first:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))
            unlink(disk, path)

        monkeypatch.setattr(OsDisk, "unlink", refuse)
        with pytest.raises(Unwritable):
            store.forget(SEQUENCE)
        monkeypatch.undo()
        assert segments_in(data_dir) == [first]
        assert store.evict(1) == []  # tries again what failed
        assert segments_in(data_dir) == []
        assert store.live_bytes == 0
    assert second.name != first.name


def _locked_up(monkeypatch, what: str) -> None:
    real = getattr(OsDisk, what)

    def refuse(disk, path):
        if "quarantine" in (path.name, path.parent.name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(disk, path)

    monkeypatch.setattr(OsDisk, what, refuse)


@pytest.mark.parametrize("what", ["items", "unlink"])
def test_a_locked_quarantine_blocks_no_start(data_dir, monkeypatch, what):
    """Guards every start after a `forget`: it failed at a quarantine/ that could not be listed or emptied."""
    place = data_dir / "quarantine"
    with DataDir.open(data_dir) as directory:
        keys = KeyChain.open(directory, protection="file")
        with open_store(directory, keys=keys) as store:
            Model(TINY).append(store, 2)
        place.mkdir()
        (place / "seg-0000000000000001-0000000000000001.kv").write_bytes(b"ours")
        keys.destroy(SEQUENCE)
        _locked_up(monkeypatch, what)
        with Library(directory, keys) as library:
            assert [n for n in library.notices if "quarantine could not be emptied" in n] != []
            assert not any("cannot be believed" in notice for notice in library.notices)
        assert segments_in(data_dir) == []
        assert keys.destroyed() == []
        assert not check_directory(directory, keys).problems
        monkeypatch.undo()
        keys.need(OTHER)
        with open_store(directory, keys=keys) as store:
            store.forget(OTHER)
            assert store.take_notices() == []
    assert list(place.iterdir()) == []


def test_without_encryption_a_locked_quarantine_is_told(data_dir, monkeypatch):
    """Guards `forget`: what it left there could still be read, so it must not claim to be done."""
    _filled(data_dir)
    (data_dir / "quarantine").mkdir()
    _locked_up(monkeypatch, "items")
    with open_store(data_dir) as store:
        with pytest.raises(Unwritable, match="could not be emptied"):
            store.forget(SEQUENCE)
        assert segments_in(data_dir) == []


def test_segments_that_stay_block_no_start(data_dir, monkeypatch):
    """Guards a start beside files that cannot be removed: it goes on, and the next one tries again."""

    def refuse(_directory, _keys, _sequence_id):
        raise Unwritable("files could not be removed")

    with DataDir.open(data_dir) as directory:
        keys = KeyChain.open(directory, protection="file")
        keys.need(SEQUENCE)
        keys.destroy(SEQUENCE)
        with monkeypatch.context() as patch:
            patch.setattr("edgekv.conversation.library.forget_kv", refuse)
            with Library(directory, keys) as library:
                assert any("files could not be removed" in notice for notice in library.notices)
            assert keys.destroyed() == [SEQUENCE]
        with Library(directory, keys) as library:
            assert library.notices == keys.notices
        assert keys.destroyed() == []
