"""Where a conversation's turns are kept: the transcripts on disk, or nowhere.

Knows rows and blobs. A durable turn is on disk when `save` returns; a private one leaves no trace.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from edgekv.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekv.conversation.turns import Turn, TurnTree


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a conversation beside its name and turns."""

    fingerprint: bytes
    model: str
    system: str | None = None
    format: int = 1


@dataclass(slots=True)
class Identity:
    """Who a conversation is: its name, the id of its KV, and the model its token ids belong to."""

    name: str
    sequence_id: bytes
    meta: Meta


class Journal(Protocol):
    """Keeps turns. `save` and `save_head` raise StoreError when the disk refuses."""

    def load(self, tree: TurnTree) -> None:
        """Fill an empty tree."""
        ...

    def save(self, path: list[Turn]) -> None:
        """Keep the last turn of `path`, make it the head; earlier ones not kept yet are added, all or none."""
        ...

    def owe(self, path: list[Turn]) -> None:
        """`save` was refused and the turns stay: `settle_all` keeps them, the last one as the head."""
        ...

    def settle_all(self) -> str | None:
        """Try again what is owed, by whatever conversation; why some of this one's still is, None when all is kept.

        After a turn was kept: the conversation that owes may not speak again for long.
        """
        ...

    def save_head(self, turn_id: int | None) -> None:
        """Remember which branch is current."""
        ...


class PrivateJournal:
    """Keeps nothing anywhere."""

    def load(self, tree: TurnTree) -> None:
        """There is nothing to load."""

    def save(self, path: list[Turn]) -> None:
        """Memory only."""

    def owe(self, path: list[Turn]) -> None:
        """Nothing is ever owed."""

    def settle_all(self) -> str | None:
        """None."""
        return None

    def save_head(self, turn_id: int | None) -> None:
        """Memory only."""


class UnkeptJournal(PrivateJournal):
    """Begins with what another journal kept, and keeps nothing more."""

    def __init__(self, kept: Journal) -> None:
        self._kept = kept

    def load(self, tree: TurnTree) -> None:
        """Raises StoreError where a turn is damaged."""
        self._kept.load(tree)


def decode_meta(blob: bytes, name: str) -> Meta:
    """The stored description of conversation `name`; StoreError if it makes no sense."""
    try:
        return msgspec.msgpack.decode(blob, type=Meta)
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"the description of conversation {name!r} cannot be read: {error}; "
            "a newer edgekv may have written it"
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """The storage package's errors as ours."""
    from edgekv_storage import StorageError  # noqa: PLC0415  numpy comes with it

    try:
        yield
    except StorageError as error:
        raise StoreError(str(error)) from error
