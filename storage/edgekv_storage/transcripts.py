"""transcripts.db: what people wrote and were answered. Acknowledged means durable; a flipped row is named.

SQLite in WAL mode with synchronous=FULL, one commit per turn, one checksum per row. Knows conversations,
turns and their order; not what is in a blob. Only the process that holds the data directory's lock may write,
so two processes never interleave the turns of one conversation; others may read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import xxhash

from edgekv_storage.errors import (
    DiskFull,
    Locked,
    NameTaken,
    NoSuchConversation,
    StorageError,
    StoreClosed,
    TranscriptDamaged,
    UnknownFormat,
    Unwritable,
)
from edgekv_storage.files import open_private, sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from edgekv_storage.datadir import DataDir

_VERSION = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    sequence_id BLOB NOT NULL, meta BLOB NOT NULL, head INTEGER, turns INTEGER NOT NULL,
    created REAL NOT NULL, sum BLOB NOT NULL);
CREATE TABLE turns (id INTEGER PRIMARY KEY AUTOINCREMENT, conversation INTEGER NOT NULL, parent INTEGER,
    blob BLOB NOT NULL, created REAL NOT NULL, sum BLOB NOT NULL);
CREATE INDEX turns_of ON turns (conversation, id);
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_CONVERSATION = "SELECT id, name, sequence_id, meta, head, turns, created, sum FROM conversations"
_TURN = "SELECT id, conversation, parent, blob, created, sum FROM turns"


class ConversationRow(NamedTuple):
    """`head`: the turn to go on from; `num_turns` counts all branches; `created` is Unix time."""

    id: int
    name: str
    sequence_id: bytes
    meta: bytes
    head: int | None
    num_turns: int
    created: float


class TurnRow(NamedTuple):
    """`parent` is the turn before it, None for a first one."""

    id: int
    conversation_id: int
    parent: int | None
    blob: bytes
    created: float


def _sum(row: tuple[Any, ...]) -> bytes:
    return xxhash.xxh3_128_digest(repr(tuple(row)).encode())


class Transcripts:
    """Any thread. Every method raises StorageError or a child of it."""

    def __init__(self, db: sqlite3.Connection, directory: DataDir) -> None:
        """Use `Transcripts.open`."""
        self._db: sqlite3.Connection | None = db
        self._directory = directory
        self._lock = threading.RLock()

    @classmethod
    def open(cls, directory: DataDir) -> Transcripts:
        """Opens or creates; read-only when the directory is.

        Raises UnknownFormat, Unwritable, TranscriptDamaged.
        """
        path = directory.path / "transcripts.db"
        is_writable = directory.is_writable
        try:
            is_new = is_writable and not path.exists()
            os.close(open_private(path, (os.O_RDWR | os.O_CREAT) if is_writable else os.O_RDONLY))
            if is_new:
                sync_directory(directory.path)
        except OSError as error:
            raise Unwritable(f"cannot open {path}: {error.strerror}") from error
        with _translated(path.name):
            mode = "rw" if is_writable else "ro"
            uri = f"{path.absolute().as_uri()}?mode={mode}"
            db = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=10)
            try:
                _prepare(db, is_writable=is_writable)
            except BaseException:
                db.close()
                raise
        return cls(db, directory)

    def close(self) -> None:
        """Harmless when called again."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()

    # Conversations

    def create_conversation(self, name: str, sequence_id: bytes, meta: bytes = b"") -> ConversationRow:
        """Durable when it returns. Raises NameTaken."""
        with self._writing() as db:
            if db.execute("SELECT 1 FROM conversations WHERE name = ?", (name,)).fetchone():
                raise NameTaken(f"there is a conversation named {name!r} already")
            row = (_next_id(db, "conversations"), name, sequence_id, meta, None, 0, time.time())
            db.execute("INSERT INTO conversations VALUES (?,?,?,?,?,?,?,?)", (*row, _sum(row)))
            return ConversationRow(*row)

    def conversations(self) -> list[ConversationRow]:
        """All conversations, oldest first. Raises TranscriptDamaged at the first damaged row."""
        with self._reading() as db:
            return [_conversation(row) for row in db.execute(_CONVERSATION + " ORDER BY id")]

    def get(self, name: str) -> ConversationRow | None:
        """The conversation of that name, None when there is none."""
        with self._reading() as db:
            row = db.execute(_CONVERSATION + " WHERE name = ?", (name,)).fetchone()
            return _conversation(row) if row else None

    def rename(self, conversation_id: int, name: str) -> None:
        """Raises NameTaken, NoSuchConversation."""
        with self._writing() as db:
            row = _get(db, conversation_id)
            if db.execute(
                "SELECT 1 FROM conversations WHERE name = ? AND id != ?", (name, row.id)
            ).fetchone():
                raise NameTaken(f"there is a conversation named {name!r} already")
            _put(db, row._replace(name=name))

    def set_meta(self, conversation_id: int, meta: bytes) -> None:
        """Replaces the conversation's own blob."""
        with self._writing() as db:
            _put(db, _get(db, conversation_id)._replace(meta=meta))

    def set_head(self, conversation_id: int, turn_id: int | None) -> None:
        """Makes the conversation go on from another turn of its own."""
        with self._writing() as db:
            row = _get(db, conversation_id)
            if turn_id is not None:
                _turn_of(db, turn_id, conversation_id)
            _put(db, row._replace(head=turn_id))

    def delete(self, conversation_id: int) -> None:
        """Deletes and overwrites a conversation, in SQLite's journal too. Works on damaged rows.

        Raises StorageError when another process was reading and the journal could not be emptied.
        """
        with self._writing() as db:
            db.execute("DELETE FROM turns WHERE conversation = ?", (conversation_id,))
            db.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
        with self._reading() as db:
            if db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise StorageError(
                    "deleted, but another process still reads the journal: close it and delete again"
                )

    # Turns

    def append_turn(
        self, conversation_id: int, parent_turn: int | None, blob: bytes, *, head: bool = True
    ) -> int:
        """Adds a turn and returns its id, durably; with `head` the conversation goes on from it."""
        with self._writing() as db:
            row = _get(db, conversation_id)
            if parent_turn is not None:
                _turn_of(db, parent_turn, conversation_id)
            turn = (_next_id(db, "turns"), conversation_id, parent_turn, bytes(blob), time.time())
            db.execute("INSERT INTO turns VALUES (?,?,?,?,?,?)", (*turn, _sum(turn)))
            _put(db, row._replace(num_turns=row.num_turns + 1, head=turn[0] if head else row.head))
            return turn[0]

    def update_turn(self, turn_id: int, blob: bytes) -> None:
        """Replaces a turn's blob (a partial answer that went on); durable when it returns."""
        with self._writing() as db:
            row = db.execute(_TURN + " WHERE id = ?", (turn_id,)).fetchone()
            if row is None:
                raise NoSuchConversation(f"there is no turn {turn_id}")
            turn = tuple(_turn(row)._replace(blob=bytes(blob)))
            db.execute("UPDATE turns SET blob = ?, sum = ? WHERE id = ?", (turn[3], _sum(turn), turn_id))

    def turns(self, conversation_id: int) -> list[TurnRow]:
        """All turns of a conversation, oldest first. Raises TranscriptDamaged naming the damaged turn."""
        with self._reading() as db:
            row = _get(db, conversation_id)
            found = db.execute(_TURN + " WHERE conversation = ? ORDER BY id", (conversation_id,)).fetchall()
            turns = [_turn(turn) for turn in found]
            if len(turns) != row.num_turns:
                raise TranscriptDamaged(
                    f"{row.name!r} has {len(turns)} of its {row.num_turns} turns: the rest is lost"
                )
            return turns

    def damaged_turns(self, conversation_id: int) -> list[int]:
        """Ids of turns that do not match their checksums."""
        with self._reading() as db:
            found = db.execute(_TURN + " WHERE conversation = ? ORDER BY id", (conversation_id,)).fetchall()
            return [row[0] for row in found if row[-1] != _sum(row[:-1])]

    # Transactions

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated("transcripts.db"):
            if self._db is None:
                raise StoreClosed("the transcripts are closed")
            yield self._db

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; leaving it without an error means it is on the drive."""
        with self._reading() as db:
            if not self._directory.is_writable:
                raise Locked(f"{self._directory.path} is in use by another process; end it to write there")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prepare(db: sqlite3.Connection, *, is_writable: bool) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _VERSION):
        raise UnknownFormat(
            f"transcripts.db has format {version}, this version reads {_VERSION}; nothing was touched: "
            "update edgekv"
        )
    if not is_writable:
        return
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise UnknownFormat(
            "transcripts.db was not made by edgekv; move it away or choose another --data-dir"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")
    if version == 0:
        db.executescript(_SCHEMA)


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    """SQLite's errors as ours: a full drive, a damaged file; the rest is shown as it is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
            raise DiskFull(f"the drive is full: {name} was not changed; free some space") from error
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise Unwritable(f"{name} cannot be written or opened ({error})") from error
        raise StorageError(f"{name}: {error}; nothing was changed") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise TranscriptDamaged(
            f"{name} is damaged ({error}): restore it from a backup or move it away"
        ) from error


def _next_id(db: sqlite3.Connection, table: str) -> int:
    """An id never given before: the checksum covers it, so it is needed before the row is inserted."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return int(row[0]) + 1 if row else 1


def _conversation(row: tuple[Any, ...]) -> ConversationRow:
    if row[-1] != _sum(row[:-1]):
        raise TranscriptDamaged(
            f"the record of conversation {row[0]} ({row[1]!r}) does not match its checksum"
        )
    return ConversationRow(*row[:-1])


def _turn(row: tuple[Any, ...]) -> TurnRow:
    if row[-1] != _sum(row[:-1]):
        raise TranscriptDamaged(f"turn {row[0]} of conversation {row[1]} does not match its checksum", row[0])
    return TurnRow(*row[:-1])


def _get(db: sqlite3.Connection, conversation_id: int) -> ConversationRow:
    row = db.execute(_CONVERSATION + " WHERE id = ?", (conversation_id,)).fetchone()
    if row is None:
        raise NoSuchConversation(f"there is no conversation {conversation_id}")
    return _conversation(row)


def _turn_of(db: sqlite3.Connection, turn_id: int, conversation_id: int) -> None:
    row = db.execute("SELECT conversation FROM turns WHERE id = ?", (turn_id,)).fetchone()
    if row is None or row[0] != conversation_id:
        raise NoSuchConversation(f"there is no turn {turn_id} in conversation {conversation_id}")


def _put(db: sqlite3.Connection, row: ConversationRow) -> None:
    db.execute(
        "UPDATE conversations SET name = ?, meta = ?, head = ?, turns = ?, sum = ? WHERE id = ?",
        (row.name, row.meta, row.head, row.num_turns, _sum(tuple(row)), row.id),
    )
