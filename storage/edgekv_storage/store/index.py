"""index.db: where records lie, so that opening a big store reads rows instead of segments.

Disposable: every row carries a checksum and is believed only as far as the segment confirms it; a damaged or
missing file is rebuilt from the segments. Knows SQLite; not what is in a leaf.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from edgekv_storage.io.disk import OS_DISK
from edgekv_storage.looking import open_to_look
from edgekv_storage.segments.format import KEY_BYTES, MAX_SEGMENTS, PAGE, Entry
from edgekv_storage.segments.quarantine import SEGMENT_NAME
from edgekv_storage.space.losses import Loss
from edgekv_storage.store.transfer import LeafPlace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from edgekv_storage.io.disk import Disk

_VERSION = 2
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS segments (name TEXT PRIMARY KEY, header BLOB, end INTEGER, bytes INTEGER,
    sealed INTEGER, records INTEGER, damaged INTEGER, sum INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (segment INTEGER, number INTEGER, offset INTEGER, bytes INTEGER,
    tables INTEGER, keys BLOB, parent BLOB, sum INTEGER, PRIMARY KEY (segment, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead (segment INTEGER, number INTEGER, leaf INTEGER,
    PRIMARY KEY (segment, number, leaf)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS losses (sequence BLOB, why TEXT, tokens INTEGER, bytes INTEGER, at INTEGER,
    sum INTEGER, PRIMARY KEY (sequence, why)) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""


class IndexBroken(Exception):
    """SQLite or a row's checksum says that index.db cannot be believed. The reason is one line of a notice."""

    def __init__(self, reason: str) -> None:
        super().__init__(" ".join(reason.split()))  # SQLite quotes a damaged schema with its line ends


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment as last committed; `header` is its packed header without the padding."""

    name: str
    header: bytes
    end: int
    file_bytes: int
    is_sealed: bool
    num_records: int
    num_damaged: int = 0


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A record as last committed."""

    segment: int
    number: int
    entry: Entry
    keys: list[bytes]
    parent: bytes  # key of the leaf before the first one, NO_PARENT at a sequence's start


def _sum(*values: object) -> int:
    return xxhash.xxh3_64_intdigest(repr(values).encode()) >> 1  # SQLite integers are signed


class Index:
    """Any thread; a lock inside. Every method raises IndexBroken."""

    def __init__(self, path: Path, disk: Disk = OS_DISK) -> None:
        self.path = path
        self._disk = disk
        self._lock = threading.Lock()
        self.bytes_written = 0
        self._wal = path.with_name(path.name + "-wal")
        with self._guard():
            self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = self._disk.database(self.path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")
        if db.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
            db.close()
            raise IndexBroken("index.db is of another version")
        db.executescript(_SCHEMA)
        return db

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, TypeError, ValueError) as error:
                raise IndexBroken(f"index.db: {error}") from error

    def segments(self) -> list[SegmentRow]:
        """Every segment row."""
        with self._guard():
            found = self._db.execute("SELECT * FROM segments").fetchall()
            return [_segment_row(_checked(row)) for row in found]

    def records(self, segments: Iterable[int]) -> list[RecordRow]:
        """Rows of the given segments, in the order they were written."""
        with self._guard():
            rows: list[RecordRow] = []
            for segment in segments:
                query = "SELECT * FROM records WHERE segment = ? ORDER BY number"
                rows += [_record_row(_checked(row)) for row in self._db.execute(query, (segment,))]
            return rows

    def dead(self, segments: Iterable[int]) -> set[tuple[int, int, int]]:
        """(segment, record, leaf) that failed their checksum once."""
        query = "SELECT segment, number, leaf FROM dead WHERE segment = ?"
        with self._guard():
            found = {row for segment in segments for row in self._db.execute(query, (segment,))}
            _need_numbers(*(value for row in found for value in row))
            return found

    def commit(
        self,
        segments: Iterable[SegmentRow] = (),
        records: Iterable[RecordRow] = (),
        dead: Iterable[tuple[int, int, int]] = (),
    ) -> None:
        """One transaction."""
        with self._guard(), self._transaction():
            self._db.executemany(
                "REPLACE INTO segments VALUES (?,?,?,?,?,?,?,?)", map(_segment_values, segments)
            )
            self._db.executemany(
                "REPLACE INTO records VALUES (?,?,?,?,?,?,?,?)", map(_record_values, records)
            )
            self._db.executemany("INSERT OR IGNORE INTO dead VALUES (?,?,?)", dead)

    def drop(self, segments: Iterable[tuple[str, int]], *, wipe: bool = False) -> None:
        """Removes segments (name, id) and their rows; with `wipe` also from SQLite's own journal."""
        with self._guard():
            with self._transaction():
                for name, segment in segments:
                    self._db.execute("DELETE FROM segments WHERE name = ?", (name,))
                    if segment < MAX_SEGMENTS:  # a name that somebody made up has no rows
                        self._db.execute("DELETE FROM records WHERE segment = ?", (segment,))
                        self._db.execute("DELETE FROM dead WHERE segment = ?", (segment,))
            if wipe:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def losses(self) -> list[Loss]:
        """Every one."""
        with self._guard():
            found = self._db.execute("SELECT * FROM losses").fetchall()
            return [_loss(_checked(row)) for row in found]

    def keep_losses(self, losses: dict[bytes, list[Loss]]) -> None:
        """Replaces the losses of the given sequences."""
        with self._guard(), self._transaction():
            for sequence_id, known in losses.items():
                self._db.execute("DELETE FROM losses WHERE sequence = ?", (sequence_id,))
                for loss in known:
                    values = (loss.sequence_id, loss.why, loss.num_tokens, loss.num_bytes, loss.at_ns)
                    self._db.execute("INSERT INTO losses VALUES (?,?,?,?,?,?)", (*values, _sum(*values)))

    def clear(self) -> None:
        """Removes every row."""
        with self._guard(), self._transaction():
            for table in ("segments", "records", "dead", "losses"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608  (fixed names)

    def close(self) -> None:
        """Never raises."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        before = self._wal_bytes()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        after = self._wal_bytes()
        self.bytes_written += after - before if after >= before else after

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except OSError:
            return 0


def known_losses(directory: Path) -> dict[bytes, list[Loss]]:
    """What was given up, by sequence, for who has no store open; empty where the index cannot be read.

    Takes no lock and writes nothing.
    """
    found: dict[bytes, list[Loss]] = {}
    path = directory / "index.db"
    with (
        contextlib.suppress(OSError, sqlite3.Error, IndexBroken, TypeError, ValueError),
        contextlib.closing(open_to_look(path)) as db,
    ):
        for row in db.execute("SELECT * FROM losses ORDER BY at DESC"):
            loss = _loss(_checked(row))
            found.setdefault(loss.sequence_id, []).append(loss)
    return found


def known_dead(directory: Path) -> set[LeafPlace]:
    """Leaves that failed their checksum once, as `known_losses`."""
    with (
        contextlib.suppress(OSError, sqlite3.Error, TypeError, ValueError),
        contextlib.closing(open_to_look(directory / "index.db")) as db,
    ):
        return {LeafPlace(*row) for row in db.execute("SELECT segment, number, leaf FROM dead")}
    return set()


def _checked(row: tuple[Any, ...]) -> tuple[Any, ...]:
    if row[-1] != _sum(*row[:-1]):
        raise IndexBroken("index.db: a row does not match its checksum")
    return row[:-1]


def _need_numbers(*values: object) -> None:
    """The checksum of a row has no key: whoever planted one could give it any types."""
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise IndexBroken("index.db: a row that cannot be true")


def _loss(row: tuple[Any, ...]) -> Loss:
    sequence_id, why, *numbers = row
    _need_numbers(*numbers)
    if not (isinstance(sequence_id, bytes) and isinstance(why, str)):
        raise IndexBroken("index.db: a row that cannot be true")
    return Loss(sequence_id, why, *numbers)


def _segment_values(row: SegmentRow) -> tuple[Any, ...]:
    values = (
        row.name,
        row.header,
        row.end,
        row.file_bytes,
        int(row.is_sealed),
        row.num_records,
        row.num_damaged,
    )
    return (*values, _sum(*values))


def _segment_row(row: tuple[Any, ...]) -> SegmentRow:
    name, header, end, file_bytes, sealed, records, damaged = row
    _need_numbers(end, file_bytes, sealed, records, damaged)
    is_sane = PAGE <= end <= file_bytes and damaged <= records <= (end - PAGE) // PAGE
    if not (isinstance(name, str) and SEGMENT_NAME.fullmatch(name) and isinstance(header, bytes) and is_sane):
        raise IndexBroken("index.db: a row that cannot be true")
    return SegmentRow(name, header, end, file_bytes, bool(sealed), records, damaged)


def _record_values(row: RecordRow) -> tuple[Any, ...]:
    entry = row.entry
    keys = b"".join(row.keys)
    values = (row.segment, row.number, entry.offset, entry.record_bytes, entry.table_bytes, keys, row.parent)
    return (*values, _sum(*values))


def _record_row(row: tuple[Any, ...]) -> RecordRow:
    segment, number, offset, record_bytes, table_bytes, joined, parent = row
    _need_numbers(segment, number, offset, record_bytes, table_bytes)
    if not (isinstance(joined, bytes) and isinstance(parent, bytes) and len(parent) == KEY_BYTES):
        raise IndexBroken("index.db: a row that cannot be true")
    keys = [joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES)]
    return RecordRow(segment, number, Entry(offset, record_bytes, table_bytes, len(keys)), keys, parent)
