"""The one way files are opened: ordinary ones only, no link followed, no pipe waited for, reading bounded."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from edgekv_storage import DataDir, Unwritable
from edgekv_storage.files import open_private, read_private


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_CREAT])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "socket", "device"])
def test_only_ordinary_files_are_opened(tmp_path, monkeypatch, kind, flags):
    """Guards commands against pipes planted as LOCK, meta.json or a database: each hung for ever."""
    path = tmp_path / "it"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "victim").write_bytes(b"precious")
        path.symlink_to("victim")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket may have 108 bytes
        socket.socket(socket.AF_UNIX).bind("it")
    else:
        path = type(tmp_path)("/dev/null")
    with pytest.raises(OSError) as caught:
        open_private(path, flags)
    assert caught.value.errno in (errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENXIO)


def test_reading_is_bounded(tmp_path):
    """Guards memory: a planted meta.json of any length was read to its end."""
    path = tmp_path / "it"
    path.write_bytes(b"x" * 1000)
    fd = open_private(path, os.O_RDONLY)
    assert os.get_blocking(fd)
    os.close(fd)
    assert read_private(path, 1000) == b"x" * 1000
    with pytest.raises(OSError, match="longer than 999 bytes") as caught:
        read_private(path, 999)
    assert caught.value.errno == errno.EFBIG


def test_a_pipe_in_place_of_lock(data_dir):
    """Guards the first open of all: it is one clear line."""
    data_dir.mkdir()
    os.mkfifo(data_dir / "LOCK")
    with pytest.raises(Unwritable, match="it is not an ordinary file; choose another directory"):
        DataDir.open(data_dir)
