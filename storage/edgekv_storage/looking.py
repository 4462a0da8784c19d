"""An SQLite file opened only to look at it: nothing is made beside it, nobody is waited for.

SQLite reads a file in WAL mode only where it may make -wal and -shm beside it, and leaves them behind. Where
there is no journal nobody writes, and the file can be read as it is. Knows files; no tables.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.files import open_private

if TYPE_CHECKING:
    from pathlib import Path

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


def open_to_look(path: Path) -> sqlite3.Connection:
    """Any thread may use it. Without a journal it is the file as it is now: whoever writes it later is not seen.

    Raises sqlite3.Error, OSError: NotAFile for a pipe or a folder, ELOOP for a link.
    """
    os.close(open_private(path, os.O_RDONLY))  # SQLite waits for a pipe for ever, and follows links
    frozen = "" if has_journal(path) else "&immutable=1"
    uri = f"{path.absolute().as_uri()}?mode=ro{frozen}"
    return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=10)
