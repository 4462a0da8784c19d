"""Backup and restore: complete or absent, readable again, never over anything."""

from __future__ import annotations

import os
import shutil
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
