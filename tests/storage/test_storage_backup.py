"""Backup and restore: complete or absent, readable again, never over anything."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading

import pytest
from keychain_fixtures import use_keyring
from storage_fixtures import OTHER, SEQUENCE, TINY, Model, open_store

from edgekv_storage import (
    DataDir,
    KeyChain,
    KeyUnavailable,
    Locked,
    StorageError,
    TranscriptDamaged,
    Transcripts,
    UnknownFormat,
    Unwritable,
    backup,
)
from edgekv_storage.looking import look_at_whole


@pytest.fixture
def filled(data_dir):
    """An encrypted directory with text and KV, closed."""
    with DataDir.open(data_dir) as directory:
        keys = KeyChain.open(directory)
        with Transcripts.open(directory, keys) as transcripts:
            chat = transcripts.create_conversation("trip", SEQUENCE, b"meta")
            transcripts.append_turn(chat.id, None, b"hello")
        model = Model(TINY)
        with open_store(directory, keys=keys) as store:
            model.append(store, 5)
    return data_dir, model


def text_of(path):
    with DataDir.open(path) as directory:
        keys = KeyChain.open(directory)
        with Transcripts.open(directory, keys) as transcripts:
            rows = transcripts.conversations()
            return {row.name: [turn.blob for turn in transcripts.turns(row.id)] for row in rows}


def test_what_was_backed_up_comes_back(filled, tmp_path):
    """Guards the round trip: text, keys and KV, private files, and the source as it was."""
    source, model = filled
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    copied = backup.back_up(source, tmp_path / "safe", with_kv=True)
    assert (copied.protection, copied.notices) == ("file", [])
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "safe").iterdir()} == {0o600}
    after = {name: (source / name).read_bytes() for name in before}
    assert after == before
    shutil.rmtree(source)
    backup.restore(tmp_path / "safe", source)
    assert text_of(source) == {"trip": [b"hello"]}
    with DataDir.open(source) as directory, open_store(directory, keys=KeyChain.open(directory)) as store:
        assert model.read(store, model.find(store)) == (15, 0)


def test_text_is_backed_up_while_another_process_writes(filled, tmp_path):
    """Guards the online copy: consistent at some moment, keys for every conversation in it; KV needs the lock."""
    source, _ = filled
    with DataDir.open(source) as directory:
        keys = KeyChain.open(directory)
        with Transcripts.open(directory, keys) as transcripts:
            stop = threading.Event()

            def write():
                number = 0
                while not stop.is_set():
                    number += 1
                    chat = transcripts.create_conversation(f"chat {number}", os.urandom(16))
                    transcripts.append_turn(chat.id, None, b"x" * 3000)

            writer = threading.Thread(target=write)
            writer.start()
            try:
                for number in range(4):
                    backup.back_up(source, tmp_path / f"safe{number}")
                with pytest.raises(Locked):
                    backup.back_up(source, tmp_path / "kv", with_kv=True)
            finally:
                stop.set()
                writer.join()
    assert not (tmp_path / "kv").exists()
    for number in range(4):
        found = text_of(tmp_path / f"safe{number}")
        assert found["trip"] == [b"hello"]
        assert all(blobs in ([], [b"x" * 3000]) for name, blobs in found.items() if name != "trip")
        with DataDir.open(tmp_path / f"safe{number}") as copy:
            transcripts = Transcripts.open(copy, KeyChain.open(copy))
            assert transcripts.damaged_conversations() == []
            transcripts.close()


def test_nothing_is_ever_overwritten(filled, tmp_path):
    """Guards a wrong target: whatever lies there stays."""
    source, _ = filled
    backup.back_up(source, tmp_path / "safe")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name in ("full", "file", "link", "safe"):
        for act in (backup.back_up, backup.restore):
            with pytest.raises(Unwritable, match="nothing is overwritten"):
                act(source if act is backup.back_up else tmp_path / "safe", tmp_path / name)
    assert [path.read_text() for path in (tmp_path / "full").iterdir()] == ["x"]
    assert (tmp_path / "file").read_text() == "x"
    (tmp_path / "empty").mkdir(mode=0o755)
    backup.restore(tmp_path / "safe", tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700


def test_half_a_backup_is_none(filled, tmp_path, monkeypatch):
    """Guards a full drive and a killed backup: without its last file it is refused; a failed one is removed."""
    source, _ = filled
    backup.back_up(source, tmp_path / "safe")
    (tmp_path / "safe" / "meta.json").unlink()
    with pytest.raises(UnknownFormat, match="no complete backup"):
        backup.restore(tmp_path / "safe", tmp_path / "new")
    with pytest.raises(UnknownFormat, match="no complete backup"):
        backup.back_up(tmp_path / "nowhere", tmp_path / "new")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unwritable, match="No space"):
        backup.back_up(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damage_is_told_and_not_copied(filled, tmp_path):
    """Guards a backup that would replace a good one by a damaged one."""
    source, _ = filled
    data = bytearray((source / "transcripts.db").read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    (source / "transcripts.db").write_bytes(data)
    with pytest.raises(TranscriptDamaged):
        backup.back_up(source, tmp_path / "safe")
    assert not (tmp_path / "safe").exists()


def test_links_and_pipes_are_not_copied(filled, tmp_path):
    """Guards a planted segment or toml: nothing outside the folder is read, nothing hangs."""
    source, _ = filled
    (tmp_path / "secret").write_text("theirs")
    (source / "edgekv.toml").symlink_to(tmp_path / "secret")
    with pytest.raises(Unwritable):
        backup.back_up(source, tmp_path / "safe")
    (source / "edgekv.toml").unlink()
    os.mkfifo(source / "edgekv.toml")
    with pytest.raises(UnknownFormat):
        backup.back_up(source, tmp_path / "safe")
    assert not (tmp_path / "safe").exists()


def test_a_backup_under_a_keyring_needs_the_recovery_code(data_dir, tmp_path, monkeypatch):
    """Guards the way to another computer: the copy alone is closed, the code opens it."""
    ring = use_keyring(monkeypatch, tmp_path)
    with DataDir.open(data_dir) as directory:
        keys = KeyChain.open(directory)
        code = keys.export_recovery()
        with Transcripts.open(directory, keys) as transcripts:
            transcripts.create_conversation("trip", OTHER)
    assert backup.back_up(data_dir, tmp_path / "safe").protection == "keyring"
    ring.path.unlink()
    backup.restore(tmp_path / "safe", tmp_path / "new")
    with DataDir.open(tmp_path / "new") as directory:
        with pytest.raises(KeyUnavailable, match="edgekv key recover"):
            KeyChain.open(directory)
        KeyChain.recover(directory, code, protection="file")
    assert text_of(tmp_path / "new") == {"trip": []}
    assert issubclass(KeyUnavailable, StorageError)


def test_models_and_a_log_do_not_stop_a_restore(filled, tmp_path):
    """Guards the default directory: once models/ lay there nothing could be restored, and a failure took it."""
    source, _ = filled
    backup.back_up(source, tmp_path / "safe")
    target = tmp_path / "new"
    (target / "models").mkdir(parents=True)
    (target / "models" / "m.gguf").write_bytes(b"weights")
    whole = (tmp_path / "safe" / "keys.db").read_bytes()
    (tmp_path / "safe" / "master-1.key").rename(tmp_path / "key")
    (tmp_path / "safe" / "master-1.key").symlink_to(tmp_path / "key")
    with pytest.raises(Unwritable):
        backup.restore(tmp_path / "safe", target)
    assert [path.name for path in target.rglob("*")] == ["models", "m.gguf"]
    (tmp_path / "key").replace(tmp_path / "safe" / "master-1.key")
    backup.restore(tmp_path / "safe", target)
    assert (target / "keys.db").read_bytes() == whole
    assert text_of(target) == {"trip": [b"hello"]}
    with pytest.raises(Unwritable, match="not an empty folder"):
        backup.restore(tmp_path / "safe", target)


def _two_rows(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [value for (value,) in db.execute("SELECT v FROM t WHERE id IN (1, 4000) ORDER BY id")]


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("when", ["opened", "copied"])
def test_a_writer_that_begins_in_mid_copy_tears_nothing(tmp_path, monkeypatch, mode, when):
    """Guards a database at rest: copied without SQLite's locks, a commit meanwhile was half in the copy."""
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    with contextlib.closing(sqlite3.connect(source)) as db:
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER, b BLOB)")
        db.executemany("INSERT INTO t VALUES (?, 0, ?)", ((i, bytes(3000)) for i in range(1, 4001)))
        db.commit()
    began = []

    def write():
        began.append(when)
        with contextlib.closing(sqlite3.connect(source)) as writer:
            writer.execute("UPDATE t SET v = v + 1 WHERE id IN (1, 4000)")
            writer.commit()

    class Half:
        """A connection whose first copy has a commit in its middle."""

        def __init__(self, db):
            self._db = db

        def backup(self, new):
            if began:
                return self._db.backup(new)
            if when == "opened":
                self._db.execute(
                    "SELECT v FROM t WHERE id = 1"
                ).fetchone()  # the page it keeps is the old one
                write()
                return self._db.backup(new)
            return self._db.backup(new, pages=500, progress=lambda *_: None if began else write())

    copy = backup._copy_rows
    monkeypatch.setattr(backup, "_copy_rows", lambda db, path: copy(Half(db), path))
    backup._copy_database(source, target)
    assert began == [when]
    assert _two_rows(target) == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("b")) == ["b.db"]


def test_a_check_that_met_a_writer_looks_again(tmp_path):
    """Guards `edgekv check` beside a start: pages of before and after together looked like damage."""
    source = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(source)) as db:
        db.execute("CREATE TABLE t (v INTEGER)")
    seen = []

    def look(db):
        if not seen:
            with contextlib.closing(sqlite3.connect(source)) as writer:
                writer.execute("INSERT INTO t VALUES (7)")
                writer.commit()
        seen.append(db.execute("SELECT count(*) FROM t").fetchone()[0])
        if len(seen) == 1:
            raise sqlite3.DatabaseError("database disk image is malformed")
        return seen[-1]

    assert look_at_whole(source, look) == 1
    seen.append(0)
    assert look_at_whole(source, look) == 1
    assert len(seen) == 4  # nobody wrote: once is enough
