"""An SQLite file opened only to look at it: nothing is made beside it, nobody is waited for.

SQLite reads a file in WAL mode only where it may make -wal and -shm beside it, and leaves them behind. Where
there is no journal nobody writes, and the file can be read as it is. Knows files; no tables.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from edgekv_storage.files import open_private

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

COPY_IT = "where nothing can be written, copy the folder to where it can, and use the copy with --data-dir"


class Standing(NamedTuple):
    """A file as it was found: which one it is, and whether it was changed since."""

    device: int
    inode: int
    num_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Standing:
        """Links are not followed. Raises OSError."""
        status = os.lstat(path)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def is_same_file(self, path: Path) -> bool:
        """Whether `path` still names it, changed or not."""
        try:
            return Standing.of(path)[:2] == self[:2]
        except OSError:
            return False


def has_journal(path: Path) -> bool:
    """Whether somebody writes the database, or was killed while writing."""
    return any(os.path.lexists(f"{path}{suffix}") for suffix in ("-wal", "-journal"))


def open_to_look(path: Path, *, is_frozen: bool | None = None) -> sqlite3.Connection:
    """Any thread may use it. Without a journal it is the file as it is now: whoever writes it later is not seen.

    A long look then sees pages of before and after: see `look_at_whole`. `is_frozen`: whether nobody writes it,
    None: as the journal says. Raises sqlite3.Error, OSError: NotAFile for a pipe or a folder, ELOOP for a link.
    """
    os.close(open_private(path, os.O_RDONLY))  # SQLite waits for a pipe for ever, and follows links
    is_frozen = not has_journal(path) if is_frozen is None else is_frozen
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_frozen else ''}"
    return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=10)


def look_at_whole(path: Path, look: Callable[[sqlite3.Connection], T]) -> T:
    """What `look` finds in one state of the database, though somebody may begin to write it meanwhile.

    `look` may be called twice: what it found in a file that was changed under it is dropped, whatever it was, and
    the second look waits for writers as SQLite does. Raises sqlite3.Error, OSError, as `open_to_look`.
    """
    before, is_frozen = Standing.of(path), not has_journal(path)
    try:
        with contextlib.closing(open_to_look(path, is_frozen=is_frozen)) as db:
            found = look(db)
    except sqlite3.Error:
        if not is_frozen or not _is_changed(path, before):
            raise
    else:
        if not is_frozen or not _is_changed(path, before):
            return found
    with contextlib.closing(open_to_look(path, is_frozen=False)) as db:
        return look(db)


def _is_changed(path: Path, before: Standing) -> bool:
    return has_journal(path) or Standing.of(path) != before
