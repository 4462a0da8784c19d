"""Rows of transcripts.db: what is in the clear, what is sealed, and what binds the two.

A row's private content is one blob, sealed with its conversation's key (or only summed where encryption is
off); the columns beside it are bound to it, so that neither can be changed, moved or exchanged. Knows bytes;
not SQLite.
"""

from __future__ import annotations

import hmac
import os
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

import xxhash
from cryptography.exceptions import InvalidTag

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from edgekv_storage.crypt import Keys

_NONCE_BYTES = 12
_SUM_BYTES = 16
_CONVERSATION = struct.Struct("<qqqd")  # id, head (0: none), number of turns, created
_TURN = struct.Struct("<qqqd")  # id, conversation, parent (0: none), created
_NAME = struct.Struct("<H")


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


class DamagedConversation(NamedTuple):
    """A conversation whose own record cannot be read; the columns are as found, not verified."""

    id: int
    sequence_id: bytes
    num_turns: int
    created: float


class DamagedTurn(NamedTuple):
    """A turn that cannot be read; `parent` and `created` are as found, not verified."""

    id: int
    parent: int | None
    created: float


class RawConversation(NamedTuple):
    """The columns as they lie in the file; nothing of it is believed before it was opened."""

    id: int
    sequence_id: bytes
    head: int | None
    num_turns: int
    created: float
    content: bytes


class RawTurn(NamedTuple):
    """As RawConversation."""

    id: int
    conversation_id: int
    parent: int | None
    created: float
    content: bytes


class RowSeal(Protocol):
    """Seals the rows of one conversation."""

    def seal(self, context: bytes, content: bytes) -> bytes:
        """What is stored."""
        ...

    def open(self, context: bytes, stored: bytes) -> bytes | None:
        """The content, None when content or context were changed."""
        ...


class SealedRow:
    """AES-256-GCM: nonce [12], ciphertext, tag [16]."""

    def __init__(self, cipher: AESGCM) -> None:
        self._cipher = cipher

    def seal(self, context: bytes, content: bytes) -> bytes:
        """A random nonce each time: far fewer rows than 2^32."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, context)

    def open(self, context: bytes, stored: bytes) -> bytes | None:
        """None for any other key, context or bytes."""
        try:
            return self._cipher.decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            return None


class SummedRow:
    """No key: xxh3-128 [16] of context and content, then the content. Finds accidents, not attackers."""

    def seal(self, context: bytes, content: bytes) -> bytes:
        """The sum goes first."""
        return xxhash.xxh3_128_digest(context + content) + content

    def open(self, context: bytes, stored: bytes) -> bytes | None:
        """None where the sum differs."""
        content = stored[_SUM_BYTES:]
        is_good = hmac.compare_digest(stored[:_SUM_BYTES], xxhash.xxh3_128_digest(context + content))
        return content if is_good else None


class NoSeal:
    """Stands for a key that is not there: nothing opens."""

    def seal(self, context: bytes, content: bytes) -> bytes:
        """Nobody may get here: what cannot be opened is not written either."""
        del context, content
        raise AssertionError("a row without a key is never written")

    def open(self, context: bytes, stored: bytes) -> bytes | None:
        """None."""
        del context, stored
        return None


def seal_of(keys: Keys | None, sequence_id: object) -> RowSeal:
    """The seal of a conversation whose key exists; NoSeal where it does not."""
    if keys is None:
        return SummedRow()
    key = keys.find(sequence_id) if isinstance(sequence_id, bytes) else None
    return NoSeal() if key is None else SealedRow(key.text_seal())


def seal_conversation(seal: RowSeal, row: ConversationRow) -> RawConversation:
    """The row as it is stored; name and meta are sealed."""
    name = row.name.encode()
    raw = RawConversation(row.id, row.sequence_id, row.head, row.num_turns, row.created, b"")
    content = _NAME.pack(len(name)) + name + row.meta
    return raw._replace(content=seal.seal(_conversation_context(raw), content))


def open_conversation(seal: RowSeal, raw: RawConversation) -> ConversationRow | None:
    """None when anything in the row was changed."""
    try:
        content = seal.open(_conversation_context(raw), raw.content)
        if content is None:
            return None
        end = _NAME.size + _NAME.unpack_from(content)[0]
        name = content[_NAME.size : end].decode()
    except (struct.error, TypeError, UnicodeDecodeError):  # a flip may also change a column's type
        return None
    return ConversationRow(raw.id, name, raw.sequence_id, content[end:], raw.head, raw.num_turns, raw.created)


def seal_turn(seal: RowSeal, row: TurnRow, sequence_id: bytes) -> RawTurn:
    """The row as it is stored; the blob is sealed."""
    raw = RawTurn(row.id, row.conversation_id, row.parent, row.created, b"")
    return raw._replace(content=seal.seal(_turn_context(raw, sequence_id), row.blob))


def open_turn(seal: RowSeal, raw: RawTurn, sequence_id: bytes) -> TurnRow | None:
    """None when anything in the row was changed, or it is another conversation's."""
    try:
        blob = seal.open(_turn_context(raw, sequence_id), raw.content)
    except (struct.error, TypeError):
        return None
    if blob is None:
        return None
    return TurnRow(raw.id, raw.conversation_id, raw.parent, blob, raw.created)


def _conversation_context(raw: RawConversation) -> bytes:
    fixed = _CONVERSATION.pack(raw.id, raw.head or 0, raw.num_turns, raw.created)
    return b"edgekv conversation" + fixed + raw.sequence_id


def _turn_context(raw: RawTurn, sequence_id: bytes) -> bytes:
    return (
        b"edgekv turn" + _TURN.pack(raw.id, raw.conversation_id, raw.parent or 0, raw.created) + sequence_id
    )
