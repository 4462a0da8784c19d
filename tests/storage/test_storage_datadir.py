"""The directory itself: one owner, private, refused with a reason when it is not what it should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from storage_fixtures import SEQUENCE, TINY, Model, open_store

from edgekv_storage import DataDir, Locked, Transcripts, UnknownFormat, Unwritable


def test_a_second_owner_is_refused(data_dir):
    """Guards one writer: another process, and this process again, get Locked and can read transcripts."""
    code = (
        "import sys, pathlib, edgekv_storage as s\n"
        "try: s.DataDir.open(pathlib.Path(sys.argv[1]))\n"
        "except s.Locked as error: print(error)\n"
    )
    with DataDir.open(data_dir) as directory, Transcripts.open(directory) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        transcripts.append_turn(chat.id, None, b"hello")
        with pytest.raises(Locked):
            open_store(data_dir)
        done = subprocess.run(
            [sys.executable, "-c", code, data_dir], capture_output=True, text=True, check=True
        )
        assert f"in use by process {os.getpid()}" in done.stdout
        with Transcripts.open(DataDir.open_read_only(data_dir)) as other:
            assert [row.name for row in other.conversations()] == ["trip"]
            with pytest.raises(Locked):
                other.append_turn(chat.id, None, b"mine")
    with open_store(data_dir):
        pass


def test_everything_is_private(data_dir):
    """Guards 0700 and 0600 under a permissive umask, SQLite's own files included."""
    before = os.umask(0)
    try:
        with DataDir.open(data_dir) as directory, Transcripts.open(directory) as transcripts:
            transcripts.create_conversation("trip", SEQUENCE)
            with open_store(directory) as store:
                Model(TINY).append(store, 1)
                store.flush()
                modes = {f.name: f.stat().st_mode & 0o777 for f in data_dir.iterdir()}
    finally:
        os.umask(before)
    assert len(modes) >= 9
    assert set(modes.values()) == {0o600}
    assert data_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [json.dumps({"format": 99, "uuid": "x"}), "{", "[]", ""])
def test_an_unknown_directory_is_left_alone(data_dir, content):
    """Guards newer, foreign and damaged directories: one line, no byte touched, the lock given back."""
    with open_store(data_dir) as store:
        Model(TINY).append(store, 1)
    (data_dir / "meta.json").write_text(content)
    before = {f.name: f.read_bytes() for f in data_dir.iterdir() if f.name != "LOCK"}
    for _ in range(2):
        with pytest.raises(UnknownFormat, match="--data-dir"):
            open_store(data_dir)
    assert {f.name: f.read_bytes() for f in data_dir.iterdir() if f.name != "LOCK"} == before


def test_places_that_cannot_be_written(data_dir, tmp_path):
    """Guards a file in the way, a planted link for LOCK, and a read-only directory."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Unwritable):
        open_store(tmp_path / "file")
    with pytest.raises(Unwritable):
        open_store(tmp_path / "file" / "below")
    data_dir.mkdir()
    (data_dir / "LOCK").symlink_to(tmp_path / "file")
    with pytest.raises(Unwritable):
        open_store(data_dir)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(Unwritable):
        DataDir.open_read_only(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory(data_dir):
    """Guards permissions: one clear error that names the directory."""
    data_dir.mkdir(mode=0o500)
    with pytest.raises(Unwritable, match="Permission denied"):
        open_store(data_dir)


def test_a_read_only_file_system(data_dir, monkeypatch):
    """Guards EROFS, which permissions do not show and root meets too."""
    data_dir.mkdir(mode=0o700)
    real = os.open

    def read_only(path, flags, *rest, **options):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(Unwritable, match="Read-only file system"):
        open_store(data_dir)


def test_a_directory_that_vanishes(data_dir):
    """Guards an unplugged drive: appends fail with one line, close does not raise."""
    import shutil

    from edgekv_storage import StorageError

    store = open_store(data_dir)
    Model(TINY).append(store, 1)
    shutil.rmtree(data_dir)
    with pytest.raises(StorageError):
        Model(TINY, b"conversation-two").append(store, 1)
    store.close()


def test_a_foreign_directory_keeps_its_permissions(tmp_path):
    """Guards `--data-dir .`: a directory with other files is not closed to others, only remarked on."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    foreign.chmod(0o755)
    (foreign / "thesis.txt").write_text("x")
    with open_store(foreign) as store:
        assert "chmod 700" in store.take_notices()[0]
    assert foreign.stat().st_mode & 0o777 == 0o755
