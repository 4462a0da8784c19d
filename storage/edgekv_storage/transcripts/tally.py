"""How much transcripts.db should hold: noticed when a damaged page or journal hides acknowledged rows.

SQLite drops a damaged journal frame and all behind it without a word, and a flipped bit in a page's header can
hide rows. So each transaction counts itself and the conversations in a row of its own, and afterwards in
transcripts.seen, a file of 24 bytes beside it that is not synced: it costs nothing, may lag after a power
loss and never runs ahead of what is durable. Knows counts; no conversations.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING

import xxhash

from edgekv_storage.files import open_private

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

SCHEMA = """
CREATE TABLE tally (one INTEGER PRIMARY KEY CHECK (one = 1), changes INTEGER NOT NULL,
    conversations INTEGER NOT NULL, sum BLOB NOT NULL);
"""
_COUNTS = struct.Struct("<qq")
_SEEN = struct.Struct("<Q16s")


def _sum(changes: int, conversations: int) -> bytes:
    return xxhash.xxh3_128_digest(b"edgekv tally" + _COUNTS.pack(changes, conversations))


def read_tally(db: sqlite3.Connection) -> tuple[int, int] | None:
    """(changes, conversations) as of the last transaction; None where the row is missing or damaged."""
    row = db.execute(
        "SELECT CAST(changes AS INTEGER), CAST(conversations AS INTEGER), CAST(sum AS BLOB) FROM tally"
    ).fetchone()
    return (row[0], row[1]) if row is not None and row[2] == _sum(row[0], row[1]) else None


def write_tally(db: sqlite3.Connection, made: int) -> int:
    """Counts the transaction under way, which added `made` conversations (negative: deleted); all changes."""
    known = read_tally(db)
    if known is None:  # the first one, or damaged, which was said when the file was opened
        known = (0, db.execute("SELECT count(*) FROM conversations").fetchone()[0] - made)
    changes, conversations = known[0] + 1, max(0, known[1] + made)
    db.execute("REPLACE INTO tally VALUES (1,?,?,?)", (changes, conversations, _sum(changes, conversations)))
    return changes


class Seen:
    """transcripts.seen; never raises, as what it guards against is rare and writing must go on without it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "transcripts.seen"

    def read(self) -> int:
        """Changes that were acknowledged at least; 0 where that is not known."""
        with contextlib.suppress(OSError):
            fd = open_private(self._path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                data = os.read(fd, _SEEN.size + 1)
            finally:
                os.close(fd)
            if len(data) == _SEEN.size:
                changes, tag = _SEEN.unpack(data)
                if tag == xxhash.xxh3_128_digest(data[:8]):
                    return int(changes)
        return 0

    def write(self, changes: int) -> None:
        """After the commit that it counts."""
        data = changes.to_bytes(8, "little")
        with contextlib.suppress(OSError):
            fd = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK)
            try:
                os.pwrite(fd, data + xxhash.xxh3_128_digest(data), 0)
            finally:
                os.close(fd)


def find_losses(db: sqlite3.Connection, acknowledged: int) -> list[str]:
    """What a freshly opened transcripts.db lacks, one line each; `acknowledged` was read before it was opened."""
    known = read_tally(db)
    there = db.execute("SELECT count(*) FROM conversations").fetchone()[0]
    if known is None:
        if not acknowledged and not there:
            return []
        return ["transcripts.db is damaged: its own count of what it holds cannot be read; keep a backup"]
    losses = []
    if known[0] < acknowledged:
        losses.append(
            f"transcripts.db is damaged: its journal was cut, and the last {acknowledged - known[0]} change(s) "
            "to conversations are lost; restore it from a backup to have them back"
        )
    if there != known[1]:
        losses.append(
            f"transcripts.db is damaged: it shows {there} of {known[1]} conversations; restore it from a backup "
            "to have all"
        )
    return losses
