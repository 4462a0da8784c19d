"""The bearer token: made at the first start, in a file that only its owner can read.

Knows files and their modes. Whoever reads the file may use the server, so one that others can read is refused.
"""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

from edgekv import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_NAME = "server.token"  # noqa: S105  a file's name
SHORTEST = 16
LONGEST = 4096


def token_at(path: Path) -> str:
    """The token in `path`; made there, 0600, where there is no file yet.

    Raises:
        ConfigError: the file cannot be read or made, belongs to somebody else, is readable by others, or holds no
            token.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _make(path)
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be read: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(f"the token file {path} is no file of yours; choose another (--token-file)")
        if found.st_mode & 0o077:
            raise ConfigError(
                f"others can read the token file {path}: chmod 600 {path}, or remove it to get a new one"
            )
        text = file.read(LONGEST + 1).decode("latin-1").strip()
    if not SHORTEST <= len(text) <= LONGEST or not all("!" <= c <= "~" for c in text):
        raise ConfigError(
            f"the token file {path} holds no token: one line of {SHORTEST} or more letters and digits; "
            "remove it to get a new one"
        )
    return text


def _make(path: Path) -> str:
    """Whole under another name first: who finds `path` finds a token in it, whenever this process dies."""
    token = secrets.token_urlsafe(32)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(token + "\n")
            os.link(new, path)
        finally:
            new.unlink()
    except FileExistsError:
        return token_at(path)  # another server of the same person began at the same time
    except OSError as error:
        raise ConfigError(
            f"the token file {path} cannot be made: {error.strerror}; choose another place (--token-file)"
        ) from error
    return token
