"""transcripts.db: what people wrote and were answered. Acknowledged means durable; a flipped row is named.

SQLite in WAL mode with synchronous=FULL, one commit per turn or for several that come together; the private part
of each row is sealed (rows.py). Knows conversations, turns and their order; not what is in a blob. Only the
process that holds the data directory's lock may write, so two processes never interleave the turns of one
conversation; others may read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Self

from edgekv_storage.errors import (
    Locked,
    NameTaken,
    NoSuchConversation,
    StorageError,
    StoreClosed,
    TranscriptDamaged,
    Unwritable,
)
from edgekv_storage.looking import Standing, has_journal
from edgekv_storage.transcripts.rows import (
    ConversationRow,
    DamagedConversation,
    DamagedTurn,
    RawConversation,
    RawTurn,
    TurnRow,
    open_conversation,
    open_turn,
    seal_conversation,
    seal_of,
    seal_turn,
)
from edgekv_storage.transcripts.tally import Seen, find_losses, write_tally
from edgekv_storage.transcripts.transcriptfile import connect, mend_index, translated

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from edgekv_storage.crypt import Keys
    from edgekv_storage.datadir import DataDir

# A damaged row may claim to be text, which would stop the reading of all others.
_CONVERSATION = (
    "SELECT id, CAST(sequence_id AS BLOB), head, turns, created, CAST(content AS BLOB) FROM conversations"
)
_OF_CONVERSATION = " WHERE conversation = ? ORDER BY id"
_TURN = "SELECT id, conversation, parent, created, CAST(content AS BLOB) FROM turns"


class Transcripts:
    """Any thread. Every method raises StorageError or a child of it."""

    def __init__(
        self, db: sqlite3.Connection, directory: DataDir, keys: Keys | None, found: Standing
    ) -> None:
        """Use `Transcripts.open`."""
        self.notices: list[str] = []  # what of the file is lost, one line each
        self._db: sqlite3.Connection | None = db
        self._seen = Seen(directory.path)
        self._directory = directory
        self._keys = keys
        self._path = directory.path / "transcripts.db"
        self._found = found
        self._is_frozen = not directory.is_writable  # until somebody is seen to write
        self._lock = threading.RLock()
        self._opened: dict[int, tuple[RawConversation, ConversationRow | None]] = {}

    @classmethod
    def open(cls, directory: DataDir, keys: Keys | None = None) -> Transcripts:
        """Opens or creates; read-only when the directory is. Rows are sealed where there are `keys`.

        Raises UnknownFormat, Unwritable, TranscriptDamaged; KeyUnavailable for sealed rows without keys.
        """
        acknowledged = Seen(directory.path).read()
        path = directory.path / "transcripts.db"
        found = None if directory.is_writable else _standing(path)  # before it is opened: nothing is missed
        db = connect(directory, is_sealed=keys is not None)
        transcripts = cls(db, directory, keys, found or _standing(path))
        try:
            with transcripts._reading() as db:  # not the one above: somebody may have begun to write
                if directory.is_writable or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    transcripts.notices += find_losses(db, acknowledged)
        except BaseException:
            transcripts.close()
            raise
        return transcripts

    def close(self) -> None:
        """Harmless when called again, and in a child made by fork."""
        if not self._directory.is_own_process:
            return
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()

    # Conversations

    def create_conversation(self, name: str, sequence_id: bytes, meta: bytes = b"") -> ConversationRow:
        """Durable when it returns, its key too. Raises NameTaken."""
        with self._writing(made=1) as db:
            self._require_free(db, name, None)
            if self._keys is not None:
                self._keys.need(sequence_id)
            row = ConversationRow(
                _next_id(db, "conversations"), name, sequence_id, meta, None, 0, time.time()
            )
            raw = seal_conversation(seal_of(self._keys, sequence_id), row)
            db.execute("INSERT INTO conversations VALUES (?,?,?,?,?,?)", raw)
            return row

    def conversations(self) -> list[ConversationRow]:
        """All that can be read, oldest first; see `damaged_conversations` for the others."""
        with self._reading() as db:
            return [row for row in self._open_all(db).values() if row is not None]

    def damaged_conversations(self) -> list[DamagedConversation]:
        """Those whose own record does not match its seal, or whose key is missing."""
        with self._reading() as db:
            bad = [id_ for id_, row in self._open_all(db).items() if row is None]
            raws = (self._opened[id_][0] for id_ in bad)
            return [DamagedConversation(raw.id, raw.sequence_id, raw.num_turns, raw.created) for raw in raws]

    def get(self, name: str) -> ConversationRow | None:
        """The conversation of that name, None when none that can be read has it."""
        return next((row for row in self.conversations() if row.name == name), None)

    def rename(self, conversation_id: int, name: str) -> None:
        """Raises NameTaken, NoSuchConversation."""
        with self._writing() as db:
            row = self._get(db, conversation_id)
            self._require_free(db, name, row.id)
            self._put(db, row._replace(name=name))

    def set_head(self, conversation_id: int, turn_id: int | None) -> None:
        """Makes the conversation go on from another turn of its own."""
        with self._writing() as db:
            row = self._get(db, conversation_id)
            if turn_id is not None:
                _turn_of(db, turn_id, conversation_id)
            self._put(db, row._replace(head=turn_id))

    def delete(self, conversation_id: int) -> None:
        """Deletes and overwrites a conversation, in SQLite's journal too. Works on damaged rows.

        Raises StorageError when another process was reading and a journal of readable text could not be
        emptied; one of sealed rows is emptied by the last who closes it.
        """
        with self._reading() as db:
            is_there = db.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
        with self._writing(made=-1 if is_there else 0) as db:
            mend_index(db, conversation_id)
            db.execute("DELETE FROM turns NOT INDEXED WHERE conversation = ?", (conversation_id,))
            db.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
            self._opened.pop(conversation_id, None)
        with self._reading() as db:
            is_busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if is_busy and self._keys is None:
                raise StorageError(
                    "deleted, but another process still reads the journal: close it and delete again"
                )

    def delete_sequence(self, sequence_id: bytes) -> None:
        """`delete` for what `sequence_id` names; harmless where there is nothing."""
        with self._reading() as db:
            found = db.execute(
                "SELECT id FROM conversations WHERE sequence_id = ?", (sequence_id,)
            ).fetchall()
        for (conversation_id,) in found:
            self.delete(conversation_id)

    # Turns

    def append_turn(
        self, conversation_id: int, parent_turn: int | None, blob: bytes, *, head: bool = True
    ) -> int:
        """Adds a turn and returns its id, durably; with `head` the conversation goes on from it."""
        return self.append_turns(conversation_id, parent_turn, [blob], head=head)[0]

    def append_turns(
        self, conversation_id: int, parent_turn: int | None, blobs: Sequence[bytes], *, head: bool = True
    ) -> list[int]:
        """Adds turns, each behind the one before, and returns their ids: all of them durably, or none."""
        with self._writing() as db:
            row = self._get(db, conversation_id)
            if parent_turn is not None:
                _turn_of(db, parent_turn, conversation_id)
            seal, ids = seal_of(self._keys, row.sequence_id), list[int]()
            for blob in blobs:
                turn = TurnRow(_next_id(db, "turns"), conversation_id, parent_turn, bytes(blob), time.time())
                db.execute("INSERT INTO turns VALUES (?,?,?,?,?)", seal_turn(seal, turn, row.sequence_id))
                ids.append(turn.id)
                parent_turn = turn.id
            last = parent_turn if head else row.head
            self._put(db, row._replace(num_turns=row.num_turns + len(ids), head=last))
            return ids

    def update_turn(self, turn_id: int, blob: bytes) -> None:
        """Replaces a turn's blob (a partial answer that went on); durable when it returns."""
        with self._writing() as db:
            found = db.execute(_TURN + " WHERE id = ?", (turn_id,)).fetchone()
            if found is None:
                raise NoSuchConversation(f"there is no turn {turn_id}")
            raw = RawTurn(*found)
            sequence_id = self._get(db, raw.conversation_id).sequence_id
            seal = seal_of(self._keys, sequence_id)
            turn = open_turn(seal, raw, sequence_id)
            if turn is None:
                raise _damaged_turn(raw)
            new = seal_turn(seal, turn._replace(blob=bytes(blob)), sequence_id)
            db.execute("UPDATE turns SET content = ? WHERE id = ?", (new.content, turn_id))

    def turns(self, conversation_id: int) -> list[TurnRow]:
        """All turns of a conversation, oldest first. Raises TranscriptDamaged naming the damaged turn."""
        with self._reading() as db:
            row = self._get(db, conversation_id)
            good, bad = self._split(db, conversation_id, row.sequence_id, row.num_turns)
            if bad:
                raise _damaged_turn(bad[0])
            if len(good) != row.num_turns:
                raise TranscriptDamaged(
                    f"{row.name!r} has {len(good)} of its {row.num_turns} turns: the rest is lost"
                )
            return good

    def readable_turns(self, conversation_id: int) -> tuple[list[TurnRow], list[DamagedTurn]]:
        """The turns that can be read, and those that are there and cannot; works on a damaged conversation."""
        with self._reading() as db:
            found = db.execute(_CONVERSATION + " WHERE id = ?", (conversation_id,)).fetchone()
            if found is None:
                raise NoSuchConversation(f"there is no conversation {conversation_id}")
            raw = RawConversation(*found)
            good, bad = self._split(db, conversation_id, raw.sequence_id, raw.num_turns)
            return good, [DamagedTurn(raw.id, raw.parent, raw.created) for raw in bad]

    def damaged_turns(self, conversation_id: int) -> list[int]:
        """Ids of turns that do not match their seals."""
        return [turn.id for turn in self.readable_turns(conversation_id)[1]]

    # Rows

    def _open_all(self, db: sqlite3.Connection) -> dict[int, ConversationRow | None]:
        """Every conversation by id, None where damaged. A row is opened once as long as it stays the same."""
        before, self._opened = self._opened, {}
        for found in db.execute(_CONVERSATION + " ORDER BY id"):
            raw = RawConversation(*found)
            known = before.get(raw.id)
            if known is not None and known[0] == raw and known[1] is not None:
                self._opened[raw.id] = known
            else:
                self._opened[raw.id] = (raw, open_conversation(seal_of(self._keys, raw.sequence_id), raw))
        return {id_: row for id_, (_, row) in self._opened.items()}

    def _get(self, db: sqlite3.Connection, conversation_id: int) -> ConversationRow:
        found = db.execute(_CONVERSATION + " WHERE id = ?", (conversation_id,)).fetchone()
        if found is None:
            raise NoSuchConversation(f"there is no conversation {conversation_id}")
        raw = RawConversation(*found)
        row = open_conversation(seal_of(self._keys, raw.sequence_id), raw)
        if row is None:
            raise TranscriptDamaged(
                f"the record of conversation {conversation_id} does not match its "
                f"{'checksum' if self._keys is None else 'seal, or its key is missing from keys.db'}"
            )
        return row

    def _put(self, db: sqlite3.Connection, row: ConversationRow) -> None:
        raw = seal_conversation(seal_of(self._keys, row.sequence_id), row)
        db.execute(
            "UPDATE conversations SET head = ?, turns = ?, content = ? WHERE id = ?",
            (raw.head, raw.num_turns, raw.content, raw.id),
        )

    def _require_free(self, db: sqlite3.Connection, name: str, except_id: int | None) -> None:
        """Names are sealed, so that SQLite cannot keep them unique: the transaction does."""
        if any(
            row is not None and row.name == name and id_ != except_id
            for id_, row in self._open_all(db).items()
        ):
            raise NameTaken(f"there is a conversation named {name!r} already")

    def _split(
        self, db: sqlite3.Connection, conversation_id: int, sequence_id: bytes, num_turns: int
    ) -> tuple[list[TurnRow], list[RawTurn]]:
        """Turns that open and those that do not, each oldest first."""
        seal = seal_of(self._keys, sequence_id)
        good, bad = [], []
        rows = db.execute(_TURN + _OF_CONVERSATION, (conversation_id,)).fetchall()
        if len({row[0] for row in rows}) != num_turns:  # a damaged SQL index hides rows, or shows one twice
            rows = db.execute(_TURN + " NOT INDEXED" + _OF_CONVERSATION, (conversation_id,)).fetchall()
        for found in rows:
            raw = RawTurn(*found)
            turn = open_turn(seal, raw, sequence_id)
            if turn is None:
                bad.append(raw)
            else:
                good.append(turn)
        return good, bad

    # Transactions

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._directory.require_own_process()  # before the lock, which the child may never get
        with self._lock, translated("transcripts.db"):
            if self._db is None:
                raise StoreClosed("the transcripts are closed")
            if self._is_frozen and (has_journal(self._path) or _standing(self._path) != self._found):
                self._look_again()
            yield self._db

    def _look_again(self) -> None:
        """Somebody began to write what was opened as a file at rest."""
        assert self._db is not None, "looked at under the lock"
        self._found = _standing(self._path)
        self._is_frozen = not has_journal(self._path)
        new = connect(self._directory, is_sealed=self._keys is not None)
        self._db.close()
        self._db = new

    def _require_in_place(self) -> None:
        """SQLite goes on writing into a file whose name was removed: nobody would find it again."""
        if not self._found.is_same_file(self._path):
            raise Unwritable(
                f"{self._path} was removed or replaced while it was in use: start again to go on"
            )

    @contextlib.contextmanager
    def _writing(self, *, made: int = 0) -> Iterator[sqlite3.Connection]:
        """One transaction; leaving it without an error means it is on the drive. `made`: conversations more."""
        with self._reading() as db:
            if not self._directory.is_writable:
                raise Locked(f"{self._directory.path} is in use by another process; end it to write there")
            self._require_in_place()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                changes = write_tally(db, made)
                db.execute("COMMIT")
                self._require_in_place()
                self._seen.write(changes)
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


def _standing(path: Path) -> Standing:
    """Raises Unwritable."""
    try:
        return Standing.of(path)
    except OSError as error:
        raise Unwritable(f"cannot open {path}: {error.strerror}") from error


def _next_id(db: sqlite3.Connection, table: str) -> int:
    """An id never given before: the checksum covers it, so it is needed before the row is inserted."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return int(row[0]) + 1 if row else 1


def _damaged_turn(raw: RawTurn) -> TranscriptDamaged:
    return TranscriptDamaged(
        f"turn {raw.id} of conversation {raw.conversation_id} does not match what was written", raw.id
    )


def _turn_of(db: sqlite3.Connection, turn_id: int, conversation_id: int) -> None:
    row = db.execute("SELECT conversation FROM turns WHERE id = ?", (turn_id,)).fetchone()
    if row is None or row[0] != conversation_id:
        raise NoSuchConversation(f"there is no turn {turn_id} in conversation {conversation_id}")
