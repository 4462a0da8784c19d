"""The token's file and the sockets: who can read them, and what is refused."""

import errno
import os
import socket
import stat

import pytest

from edgekv import ConfigError
from edgekv.server.run import listen_on_path, listen_on_port
from edgekv.server.token import token_at


def test_the_token_is_made_once_and_private(tmp_path):
    """Guards the secret: 0600 from the start, the same at the next start, long enough not to be guessed."""
    path = tmp_path / "token"
    token = token_at(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) == 43
    assert token_at(path) == token


def test_a_bad_token_file_is_refused(tmp_path):
    """Guards against a token that others know, or none at all."""
    path = tmp_path / "token"
    token_at(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read"):
        token_at(path)
    for content in (b"", b"short\n", b"two words here and there\n", b"x" * 5000, b"\xff" * 20):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="holds no token"):
            token_at(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        token_at(link)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="no file of yours"):
        token_at(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot be made"):
        token_at(tmp_path / "missing" / "token")


def test_a_token_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """Guards the start after a full drive: an empty file lay there, and was refused for ever."""

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "no space left on device")

    path = tmp_path / "token"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        with pytest.raises(ConfigError, match="no space left"):
            token_at(path)
    assert list(tmp_path.iterdir()) == []
    link = os.link

    def late(new, old):
        old.write_text("another-server-was-first\n")
        old.chmod(0o600)
        link(new, old)

    monkeypatch.setattr(os, "link", late)
    assert token_at(path) == "another-server-was-first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_port_that_is_taken(tmp_path):
    """Guards the message, and that nothing listens beyond this machine."""
    with listen_on_port(0) as first:
        host, port = first.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*choose another --port"):
            listen_on_port(port)


def test_a_unix_socket(tmp_path):
    """Guards its mode, that a left one is replaced, and that neither a live one nor a file is."""
    path = tmp_path / "s"
    with listen_on_path(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match="somebody listens"), listen_on_path(path):
            pass
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listen_on_path(path):
        pass
    path.write_text("a file")
    with pytest.raises(ConfigError, match="no socket of yours"), listen_on_path(path):
        pass
    assert path.read_text() == "a file"
    with pytest.raises(ConfigError, match="cannot listen"), listen_on_path(tmp_path / ("x" * 200)):
        pass
