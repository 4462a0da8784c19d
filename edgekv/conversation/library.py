"""The conversations that are kept: listed, found, created, forgotten.

Knows the data directory and its transcripts; needs no model and no engine. Without the directory's lock
it only reads.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec

from edgekv.conversation.journal import Identity, Meta, decode_meta
from edgekv.conversation.turns import decode_turn, encode_turn
from edgekv.errors import ConversationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from edgekv.conversation.turns import Turn, TurnTree
    from edgekv_storage import ConversationRow, DataDir, Transcripts, TurnRow

MAX_NAME = 200
SEQUENCE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class ConversationInfo:
    """One kept conversation. `created` and `updated` are seconds since 1970.

    `is_damaged`: a stored turn does not match its checksum; `updated` is then not known and is `created`.
    """

    name: str
    model: str
    num_turns: int
    created: float
    updated: float
    is_damaged: bool = False


class Library:
    """The transcripts of one data directory."""

    def __init__(self, data_dir: DataDir) -> None:
        from edgekv_storage import Transcripts  # noqa: PLC0415  numpy comes with it

        self._data_dir = data_dir
        with translated():
            self._transcripts: Transcripts = Transcripts.open(data_dir)

    @property
    def is_writable(self) -> bool:
        """Whether this process owns the directory."""
        return self._data_dir.is_writable

    def infos(self) -> list[ConversationInfo]:
        """All kept conversations, last used first."""
        with translated():
            infos = [self._info(row) for row in self._transcripts.conversations()]
        return sorted(infos, key=lambda info: info.updated, reverse=True)

    def names(self) -> list[str]:
        """The names of all kept conversations."""
        with translated():
            return [row.name for row in self._transcripts.conversations()]

    def find(self, name: str) -> Identity | None:
        """Who the conversation `name` is, or None if there is none."""
        row = self._row(name)
        return None if row is None else Identity(name, row.sequence_id, decode_meta(row.meta, name))

    def create(self, name: str, meta: Meta) -> Identity:
        """A new, empty conversation. Raises ConversationError for a name that cannot be used."""
        check_name(name)
        identity = Identity(name, os.urandom(SEQUENCE_ID_BYTES), meta)
        with translated():
            self._transcripts.create_conversation(name, identity.sequence_id, msgspec.msgpack.encode(meta))
        return identity

    def journal(self, name: str) -> TranscriptJournal:
        """Where the turns of the existing conversation `name` are kept."""
        row = self.require(name)
        return TranscriptJournal(self._transcripts, row)

    def require(self, name: str) -> ConversationRow:
        """The row of `name`; ConversationError if there is none."""
        row = self._row(name)
        if row is None:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`edgekv conversations` lists what is kept"
            raise ConversationError(f"no conversation is called {name!r}; {hint}")
        return row

    def delete(self, name: str) -> bytes:
        """Destroy the transcript of `name`; returns the id of its KV."""
        row = self.require(name)
        with translated():
            self._transcripts.delete(row.id)
        return row.sequence_id

    def close(self) -> None:
        """Close the file; the directory's lock stays with its owner."""
        self._transcripts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _row(self, name: str) -> ConversationRow | None:
        with translated():
            return self._transcripts.get(name)

    def _info(self, row: ConversationRow) -> ConversationInfo:
        from edgekv_storage import TranscriptDamaged  # noqa: PLC0415  numpy comes with it

        meta = decode_meta(row.meta, row.name)
        try:
            turns = self._transcripts.turns(row.id)
        except TranscriptDamaged:  # the others shall be listed all the same, and this one can be forgotten
            return ConversationInfo(
                row.name, meta.model, row.num_turns, row.created, row.created, is_damaged=True
            )
        updated = max((turn.created for turn in turns), default=row.created)
        return ConversationInfo(row.name, meta.model, row.num_turns, row.created, updated)


class TranscriptJournal:
    """A conversation's rows in the transcripts; its turn ids are the tree's own, mapped to rows here."""

    def __init__(self, transcripts: Transcripts, conversation: ConversationRow) -> None:
        self._transcripts = transcripts
        self._conversation_id = conversation.id
        self._name = conversation.name
        self._head_row = conversation.head
        self._rows: dict[int, int] = {}

    def load(self, tree: TurnTree) -> None:
        """Fill an empty tree. Raises StoreError naming the turn if one is damaged."""
        ids: dict[int, int] = {}
        for row in self._read():
            turn_id = tree.next_id()
            ids[row.id] = turn_id
            self._rows[turn_id] = row.id
            parent = None if row.parent is None else ids[row.parent]
            tree.put(decode_turn(row.blob, turn_id=turn_id, parent=parent))
        tree.head = None if self._head_row is None else ids[self._head_row]

    def _read(self) -> list[TurnRow]:
        from edgekv_storage import TranscriptDamaged  # noqa: PLC0415  numpy comes with it

        with translated():
            try:
                return self._transcripts.turns(self._conversation_id)
            except TranscriptDamaged as error:
                raise StoreError(
                    f"conversation {self._name!r} is damaged: {error}; restore transcripts.db from a backup, "
                    f"or destroy the conversation with `edgekv forget {shlex.quote(self._name)}`"
                ) from error

    def save(self, path: list[Turn]) -> None:
        """Keep the last turn of `path` and make it the head; earlier ones that failed before are added."""
        with translated():
            for turn in path[:-1]:
                if turn.id not in self._rows:
                    self._append(turn)
            if path[-1].id in self._rows:
                self._transcripts.update_turn(self._rows[path[-1].id], encode_turn(path[-1]))
            else:
                self._append(path[-1])

    def save_head(self, turn_id: int | None) -> None:
        """Remember which branch is current."""
        with translated():
            self._transcripts.set_head(
                self._conversation_id, None if turn_id is None else self._rows.get(turn_id)
            )

    def _append(self, turn: Turn) -> None:
        parent = None if turn.parent is None else self._rows[turn.parent]
        self._rows[turn.id] = self._transcripts.append_turn(self._conversation_id, parent, encode_turn(turn))


def kept_conversations(path: Path) -> list[ConversationInfo]:
    """What the data directory at `path` keeps; needs no model and no lock, creates nothing."""
    from edgekv_storage import DataDir  # noqa: PLC0415  numpy comes with it

    if not (path / "transcripts.db").exists():
        return []
    with translated(), DataDir.open_read_only(path) as data_dir, Library(data_dir) as library:
        return library.infos()


def require_kept(path: Path, name: str) -> None:
    """ConversationError if the data directory at `path` keeps no `name`; takes no lock, creates nothing."""
    from edgekv_storage import DataDir  # noqa: PLC0415  numpy comes with it

    if not (path / "transcripts.db").exists():
        raise ConversationError(f"no conversation is called {name!r}; none is kept in {path}")
    with translated(), DataDir.open_read_only(path) as data_dir, Library(data_dir) as library:
        library.require(name)


def forget_kept(path: Path, name: str) -> None:
    """Destroy conversation `name` of the data directory at `path`, transcript and KV, without a model."""
    from edgekv_storage import DataDir, Store  # noqa: PLC0415  numpy comes with it

    with translated(), DataDir.open(path) as data_dir, Library(data_dir) as library:
        sequence_id = library.require(name).sequence_id
        with Store.open(data_dir, None, quota_bytes=sys.maxsize) as store:
            store.forget(sequence_id)
        library.delete(name)


def check_name(name: str) -> None:
    """ConversationError if `name` is empty, very long, padded or has control characters."""
    if not name or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise ConversationError(
            f"{name!r} cannot be a conversation's name: use 1 to {MAX_NAME} printable characters "
            "without blanks at the ends"
        )


@contextmanager
def translated() -> Iterator[None]:
    """The storage package's errors as ours."""
    from edgekv_storage import StorageError  # noqa: PLC0415  numpy comes with it

    try:
        yield
    except StorageError as error:
        raise StoreError(str(error)) from error
