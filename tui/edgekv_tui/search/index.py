"""Full-text search over conversations: SQLite FTS5 in memory, within a limit of its own; nothing touches a disk.

Knows names, turns and words. Built by whoever calls `add`, conversation by conversation, in any thread.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgekv import Turn

LIMIT_BYTES = 64 << 20
MOST_HITS = 100
PAGE_BYTES = 4096
OPEN, CLOSE = "\x01", "\x02"
"""Around what was found, in `Hit.excerpt`: no text has them, it is spelt out before it is shown."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One turn that has all the words; `turn_id` is `Turn.id`."""

    name: str
    turn_id: int
    excerpt: str


class SearchIndex:
    """`names` are indexed. `is_whole` is False once one did not fit the limit: what was added first is found."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._lock = threading.Lock()
        self._most_pages = max(16, limit_bytes // PAGE_BYTES)
        self._begin_anew()

    def add(self, name: str, turns: Iterable[Turn]) -> None:
        """Index a conversation; what was known of it before is forgotten."""
        with self._lock:
            self._remove(name)
            try:
                with self._change():
                    self._db.executemany(
                        "INSERT INTO turns (said, name, turn) VALUES (?, ?, ?)",
                        ((f"{turn.user}\n{turn.answer}", name, turn.id) for turn in turns),
                    )
            except sqlite3.OperationalError as error:
                if not _is_full(error):
                    raise
                self.is_whole = False
            self.names.add(name)

    def remove(self, name: str) -> None:
        """Forget a conversation."""
        with self._lock:
            self._remove(name)

    def find(self, words: str) -> list[Hit]:
        """Turns that have all `words`, the last one as a beginning; best first."""
        query = _query(words)
        if not query:
            return []
        with self._lock:
            rows = self._db.execute(
                "SELECT name, turn, snippet(turns, 0, ?, ?, '…', 16) FROM turns WHERE turns MATCH ? "
                "ORDER BY rank LIMIT ?",
                (OPEN, CLOSE, query, MOST_HITS),
            ).fetchall()
        return [Hit(*row) for row in rows]

    def _remove(self, name: str) -> None:
        """Forgetting needs memory, too. Where there is none left all is forgotten, and `names` is empty."""
        if name not in self.names:
            return
        try:
            with self._change():
                self._db.execute("DELETE FROM turns WHERE name = ?", (name,))
            self.names.discard(name)
        except sqlite3.OperationalError as error:
            if not _is_full(error):
                raise
            self._db.close()
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA temp_store = MEMORY")
        self._db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        self._db.execute(f"PRAGMA max_page_count = {self._most_pages}")
        self._db.execute(
            "CREATE VIRTUAL TABLE turns USING fts5(said, name UNINDEXED, turn UNINDEXED, "
            'tokenize = "unicode61 remove_diacritics 2")'
        )
        self.names: set[str] = set()
        self.is_whole = True

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """All of it or nothing."""
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL  # Python's own errors have none


def _query(words: str) -> str:
    """`words` as an FTS5 query: each quoted, so that nothing in it is an operator."""
    found = re.findall(r"\w+", words)
    if not found:
        return ""
    *whole, last = found
    return " ".join([*(f'"{word}"' for word in whole), f'"{last}"*'])
