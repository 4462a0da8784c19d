"""The conversations that are kept: listed, found, created, forgotten.

Knows the data directory, its keys and its transcripts; needs no model and no engine. Without the directory's
lock it only reads. What is damaged is listed too, by its number where its name cannot be read.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec

from edgekv.conversation.journal import Identity, Meta, decode_meta, translated
from edgekv.conversation.transcript import TranscriptJournal, not_replaced
from edgekv.errors import ConversationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

    from edgekv.conversation.transcript import Rebuild
    from edgekv_storage import ConversationRow, DataDir, KeyChain, Loss, Transcripts

MAX_NAME = 200
SEQUENCE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class ConversationInfo:
    """One kept conversation. `created` and `updated` are seconds since 1970.

    `is_damaged`: a stored turn, or the record of the conversation itself, cannot be read; `updated` is then
    not known and is `created`. Without its record a conversation is called by its number, like "#3".
    `forgotten_tokens` were computed and given up on disk since, because `forgotten_why`: they will be computed
    again, their text is kept.
    """

    name: str
    model: str
    num_turns: int
    created: float
    updated: float
    is_damaged: bool = False
    forgotten_tokens: int = 0
    forgotten_why: str = ""


class Library:
    """The transcripts of one data directory."""

    def __init__(self, data_dir: DataDir, keys: KeyChain | None = None) -> None:
        """`keys`: of this directory, None where it is not encrypted. Ends what forgetting left undone."""
        from edgekv_storage import Transcripts  # noqa: PLC0415  numpy comes with it

        self._data_dir = data_dir
        self.keys = keys
        self._notices: list[str] = []
        self._owing: set[TranscriptJournal] = set()  # with turns that the disk refused
        with translated():
            self._transcripts: Transcripts = Transcripts.open(data_dir, keys)
            try:
                self._finish_forgetting()
            except BaseException:
                self._transcripts.close()
                raise

    @property
    def notices(self) -> list[str]:
        """What a person should know of keys and transcripts as they were found, one line each."""
        of_keys = self.keys.notices if self.keys is not None else ()
        return [*of_keys, *self._transcripts.notices, *self._notices]

    @property
    def is_writable(self) -> bool:
        """Whether this process owns the directory."""
        return self._data_dir.is_writable

    def infos(self) -> list[ConversationInfo]:
        """All kept conversations, last used first."""
        from edgekv_storage import known_losses  # noqa: PLC0415  numpy comes with it

        losses = known_losses(self._data_dir.path)
        with translated():
            infos = [
                _with_losses(self._info(row), losses.get(row.sequence_id, []))
                for row in self._transcripts.conversations()
            ]
            infos += [
                ConversationInfo(row.name, "", row.num_turns, row.created, row.created, is_damaged=True)
                for row in self._damaged()
            ]
        return sorted(infos, key=lambda info: info.updated, reverse=True)

    def names(self) -> list[str]:
        """The names of all kept conversations."""
        with translated():
            return [row.name for row in (*self._transcripts.conversations(), *self._damaged())]

    def find(self, name: str) -> Identity | None:
        """Who the conversation `name` is, or None if there is none."""
        row = self._row(name)
        if row is None:
            return None
        meta = decode_meta(row.meta, name) if row.meta else Meta(fingerprint=b"", model="unknown")
        return Identity(name, row.sequence_id, meta)

    def num_damaged(self) -> int:
        """Conversations whose name cannot be read: one that seems not to be there may be among them."""
        with translated():
            return len(self._damaged())

    def create(self, name: str, meta: Meta) -> Identity:
        """A new, empty conversation. Raises ConversationError for a name that cannot be used."""
        check_name(name)
        identity = Identity(name, os.urandom(SEQUENCE_ID_BYTES), meta)
        with translated():
            self._transcripts.create_conversation(name, identity.sequence_id, msgspec.msgpack.encode(meta))
        return identity

    def journal(
        self, name: str, *, read_only: bool = False, rebuild: Rebuild | None = None
    ) -> TranscriptJournal:
        """Where the turns of the existing conversation `name` are kept; `read_only` skips damaged ones.

        `rebuild` puts damaged turns together again where it can. What the disk refused of it is tried again first.
        """
        for journal in self._owing_of(self.require(name).id):
            journal.settle()
        row = self.require(name)  # as it is now: it counts its turns
        return TranscriptJournal(
            self._transcripts, row, read_only=read_only, rebuild=rebuild, owing=self._owing
        )

    def require(self, name: str) -> ConversationRow:
        """The row of `name`; ConversationError if there is none."""
        row = self._row(name)
        if row is None:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`edgekv conversations` lists what is kept"
            raise ConversationError(f"no conversation is called {name!r}; {hint}")
        return row

    def rename(self, name: str, new_name: str) -> None:
        """Call `name` `new_name`. ConversationError if there is none, or if it cannot be called so."""
        check_name(new_name)
        row = self.require(name)
        if not row.meta:
            raise ConversationError(f"{name} is damaged: it has no record of its own that could hold a name")
        if new_name != name and self._row(new_name) is not None:
            raise ConversationError(
                f"there is a conversation called {new_name!r} already; choose another name"
            )
        with translated():
            self._transcripts.rename(row.id, new_name)

    def begin_forgetting(self, name: str) -> bytes:
        """Destroy the key of `name`: from now on nothing of it can be read. Returns the id of its KV.

        Delete the KV next and call `end_forgetting`: whoever dies in between finds it done at the next start.
        """
        row = self.require(name)
        if self.keys is not None:
            with translated():
                self.keys.destroy(row.sequence_id)
        # Last: a conversation that could not be forgotten loses nothing.
        for journal in self._owing_of(row.id):
            journal.drop_owed()
        return row.sequence_id

    def end_forgetting(self, sequence_id: bytes) -> None:
        """Delete the transcript, and the last trace of the key."""
        with translated():
            self._transcripts.delete_sequence(sequence_id)
            if self.keys is not None:
                self.keys.finish(sequence_id)

    def forget(self, name: str) -> list[str]:
        """Destroy `name`, where no engine has its KV open; what nobody can read and could not be deleted."""
        sequence_id = self.begin_forgetting(name)
        with translated():
            left = forget_kv(self._data_dir, self.keys, sequence_id)
        self.end_forgetting(sequence_id)
        return left

    def close(self) -> None:
        """Close the file, once what the disk refused was tried again; the directory's lock stays with its owner.

        Raises StoreError, when it is closed, where turns were in memory only and are lost now.
        """
        try:
            if self._data_dir.is_own_process:
                self._settle()
        finally:
            self._transcripts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self) -> None:
        reasons = [why for journal in tuple(self._owing) if (why := journal.settle()) is not None]
        if not reasons:
            return
        num_turns = sum(journal.num_owed for journal in self._owing)
        ids = {journal.conversation_id for journal in self._owing}
        with translated():
            names = [repr(row.name) for row in self._transcripts.conversations() if row.id in ids]
        raise StoreError(
            f"{num_turns} turn(s) of {', '.join(names)} were in memory only and are lost now: {reasons[0]}"
        )

    def _owing_of(self, conversation_id: int) -> list[TranscriptJournal]:
        return [journal for journal in tuple(self._owing) if journal.conversation_id == conversation_id]

    def _row(self, name: str) -> ConversationRow | None:
        with translated():
            found = self._transcripts.get(name)
            return found or next((row for row in self._damaged() if row.name == name), None)

    def _damaged(self) -> list[ConversationRow]:
        """Conversations without a readable record, as far as they are known; not those being forgotten."""
        from edgekv_storage import ConversationRow  # noqa: PLC0415  numpy comes with it

        found = self._transcripts.damaged_conversations()
        leaving = self.keys.destroyed() if found and self.keys is not None else []
        return [
            ConversationRow(row.id, f"#{row.id}", row.sequence_id, b"", None, row.num_turns, row.created)
            for row in found
            if row.sequence_id not in leaving
        ]

    def _finish_forgetting(self) -> None:
        """Its key is destroyed: what cannot be deleted now is a notice, and the next start tries again."""
        from edgekv_storage import StorageError  # noqa: PLC0415  numpy comes with it

        if self.keys is None or not self._data_dir.is_writable:
            return
        for sequence_id in self.keys.destroyed():
            self._transcripts.delete_sequence(sequence_id)
            try:
                self._notices += forget_kv(self._data_dir, self.keys, sequence_id)
            except StorageError as error:
                self._notices.append(
                    f"KV of a forgotten conversation, which nobody can read, is left: {error}"
                )
            else:
                self.keys.finish(sequence_id)

    def _info(self, row: ConversationRow) -> ConversationInfo:
        meta = decode_meta(row.meta, row.name)
        good, bad = self._transcripts.readable_turns(row.id)
        if len(good) + len(bad) != row.num_turns:
            now = self._transcripts.get(row.name)
            if now is not None and now.num_turns != row.num_turns:  # it went on between the two looks at it
                return self._info(now)
        damaged = not_replaced(good, bad)
        num_turns = row.num_turns - len(bad) + len(damaged)
        if damaged or len(good) + len(bad) != row.num_turns:  # listed all the same, and it can be forgotten
            return ConversationInfo(
                row.name, meta.model, num_turns, row.created, row.created, is_damaged=True
            )
        updated = max((turn.created for turn in good), default=row.created)
        return ConversationInfo(row.name, meta.model, num_turns, row.created, updated)


def _with_losses(info: ConversationInfo, losses: list[Loss]) -> ConversationInfo:
    if not losses:
        return info
    num_tokens = sum(loss.num_tokens for loss in losses)
    return dataclasses.replace(info, forgotten_tokens=num_tokens, forgotten_why=losses[0].why)


def check_name(name: str) -> None:
    """ConversationError if `name` is empty, very long, padded or has control characters."""
    if not name or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise ConversationError(
            f"{name!r} cannot be a conversation's name: use 1 to {MAX_NAME} printable characters "
            "without blanks at the ends"
        )


def free_name(title: str, taken: Collection[str]) -> str:
    """A name that begins as `title` does, whatever is in it, and that is not `taken`: "2" and so on is added."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in title).split())[:100].rstrip()
    names = (f"{plain or 'untitled'} {number}".removesuffix(" 1") for number in itertools.count(1))
    return next(name for name in names if name not in taken)


def forget_kv(data_dir: DataDir, keys: KeyChain | None, sequence_id: bytes) -> list[str]:
    """Delete the KV of a sequence without a model; what could not be. Raises edgekv_storage.StorageError."""
    from edgekv_storage import Store  # noqa: PLC0415  numpy comes with it

    with Store.open(data_dir, None, quota_bytes=sys.maxsize, keys=keys) as store:
        store.take_notices()  # that a segment has no key any more is no news here
        store.forget(sequence_id)
        return store.take_notices()
