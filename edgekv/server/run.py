"""The listening socket and the event loop: 127.0.0.1 or a Unix socket that only its owner can reach.

Knows sockets and uvicorn. There is no way to listen to other machines: who wants that puts a proxy of their own
in front and answers for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

import uvicorn

from edgekv import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import ASGIApp

HOST = "127.0.0.1"
DEFAULT_PORT = 8377
_GRACE_S = 1
_BACKLOG = 128
_MOST_CONNECTIONS = 200  # more get 503: each may hold a body in memory
_MOST_HEADER_BYTES = 64 << 10


def listen_on_port(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 takes a free one. ConfigError where it is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {HOST}:{port}: {why}; choose another --port") from error
    return listening


@contextlib.contextmanager
def listen_on_path(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket, 0600, removed at the end. One that nobody listens on any more is replaced.

    Raises:
        ConfigError: somebody listens there, or it is another kind of file, or cannot be made.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        before = os.umask(0o177)  # from the first moment: a chmod afterwards would leave a gap
        try:
            listening.bind(os.fspath(path))
            listening.listen(_BACKLOG)  # at once: one that nobody listens on counts as left behind
        finally:
            os.umask(before)
        made = path.lstat().st_ino
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {path}: {error.strerror or error}; choose another --socket"
        ) from error
    except BaseException:
        listening.close()
        raise
    try:
        yield listening
    finally:
        listening.close()
        with contextlib.suppress(OSError):
            if path.lstat().st_ino == made:
                path.unlink()


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answer requests until a signal; what runs then is stopped. Closes the socket."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # of requests nothing is logged
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(f"{path} is there already and no socket of yours; choose another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"somebody listens on {path} already; choose another --socket")
