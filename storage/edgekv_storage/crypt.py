"""Seals: how bytes become unreadable to others and tampering becomes visible; with and without a key.

Knows AES-GCM, checksums and one key per conversation. Knows neither where keys are kept (keychain.py) nor what
is sealed: callers name each piece by its record's number and an index that is never used twice in a record.
"""

from __future__ import annotations

import secrets
import struct
from typing import TYPE_CHECKING, Protocol

import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from edgekv_storage.files import Buffer

TAG_BYTES = 16  # of AES-GCM as of xxh3-128
SECRET_BYTES = 32
KEY_ID_BYTES = 16
NO_KEY_ID = bytes(KEY_ID_BYTES)
NO_LEAF_SECRET = bytes(SECRET_BYTES)

_SEGMENT_INFO = b"edgekv segment"
_LEAF_INFO = b"edgekv leaf keys"
_TEXT_INFO = b"edgekv transcript"
_PLACE = struct.Struct("<QQ")
#   0             4       12
#   |record number |index |
_NONCE = struct.Struct("<IQ")


class Seal(Protocol):
    """Seals and opens the pieces of one segment's records.

    `record` (below 2^32) and `index` (below 2^64) name a piece; with a key the pair must never be used for
    two different pieces of a segment. `context` is bound to the piece: another one does not open it.
    """

    @property
    def is_encrypted(self) -> bool:
        """Whether sealed bytes differ from plain ones; if not, callers may skip the copy and use `tag`."""
        ...

    def seal_into(self, record: int, index: int, context: bytes, plain: Buffer, out: memoryview) -> bytes:
        """Writes the sealed bytes to the start of `out` and returns their tag.

        `out` is writable and TAG_BYTES longer than `plain`: those last bytes are scratch.
        """
        ...

    def open_into(self, record: int, index: int, context: bytes, sealed: memoryview, out: memoryview) -> bool:
        """`sealed`: the bytes, then their tag; `out`: room for the bytes. False: tampered, `out` is void."""
        ...


def seal_bytes(seal: Seal, record: int, index: int, context: bytes, plain: Buffer) -> tuple[bytes, bytes]:
    """(sealed bytes, tag) of a small piece."""
    out = memoryview(bytearray(len(plain) + TAG_BYTES))
    tag = seal.seal_into(record, index, context, plain, out)
    return bytes(out[: len(plain)]), tag


def open_bytes(
    seal: Seal, record: int, index: int, context: bytes, sealed: Buffer, tag: bytes
) -> bytes | None:
    """The plain bytes of a small piece, None where it was tampered with or belongs elsewhere."""
    out = bytearray(len(sealed))
    joined = memoryview(b"".join((sealed, tag)))
    return bytes(out) if seal.open_into(record, index, context, joined, memoryview(out)) else None


class PlainSeal:
    """No key: a checksum finds accidents, not attackers. Neither the place nor the context is bound."""

    is_encrypted = False

    @staticmethod
    def tag(plain: Buffer) -> bytes:
        """The tag of bytes that stay where they are."""
        return xxhash.xxh3_128_digest(plain)

    def seal_into(self, record: int, index: int, context: bytes, plain: Buffer, out: memoryview) -> bytes:  # noqa: ARG002  the protocol's
        """Copies; see `tag` for the way without."""
        out[: len(plain)] = plain
        return xxhash.xxh3_128_digest(plain)

    def open_into(self, record: int, index: int, context: bytes, sealed: memoryview, out: memoryview) -> bool:  # noqa: ARG002  the protocol's
        """False where the checksum differs."""
        out[:] = sealed[:-TAG_BYTES]
        return xxhash.xxh3_128_digest(out) == sealed[-TAG_BYTES:]


class AesGcmSeal:
    """AES-256-GCM under a key that one segment alone has, so that numbers from 0 on make unique nonces."""

    is_encrypted = True
    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal_into(self, record: int, index: int, context: bytes, plain: Buffer, out: memoryview) -> bytes:
        """Ciphertext at the start of `out`, its tag behind it and returned."""
        self._cipher.encrypt_into(_NONCE.pack(record, index), plain, context, out)
        return bytes(out[-TAG_BYTES:])

    def open_into(self, record: int, index: int, context: bytes, sealed: memoryview, out: memoryview) -> bool:
        """False for any other key, place, context or bytes."""
        try:
            self._cipher.decrypt_into(_NONCE.pack(record, index), sealed, context, out)
        except InvalidTag:
            return False
        return True


class ConversationKey:
    """The secret of one conversation, and what is derived from it. Destroying it makes all of it unreadable."""

    __slots__ = ("_leaf_secret", "key_id", "secret")

    def __init__(self, secret: bytes, key_id: bytes) -> None:
        """`secret` [32], random; `key_id` [16], random: names the key in the clear. Raises ValueError."""
        if len(secret) != SECRET_BYTES or len(key_id) != KEY_ID_BYTES or key_id == NO_KEY_ID:
            raise ValueError(f"a key has {SECRET_BYTES} bytes and a name of {KEY_ID_BYTES} that is not zero")
        self.secret = secret
        self.key_id = key_id
        self._leaf_secret: bytes | None = None

    @classmethod
    def generate(cls) -> ConversationKey:
        """A new random one."""
        return cls(secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(KEY_ID_BYTES))

    def __repr__(self) -> str:
        return f"ConversationKey({self.key_id.hex()[:8]}, secret hidden)"

    @property
    def leaf_secret(self) -> bytes:
        """Secret [32] of the chain keys, so that nobody can test guesses of the text against them."""
        if self._leaf_secret is None:
            self._leaf_secret = self._derive(_LEAF_INFO)
        return self._leaf_secret

    def segment_seal(self, segment: int, random: int) -> Seal:
        """The seal of one segment: `random` [64 bits] makes its key differ though an id be given twice."""
        return AesGcmSeal(self._derive(_SEGMENT_INFO + _PLACE.pack(segment, random)))

    def text_seal(self) -> AESGCM:
        """For rows of transcripts.db, with random 12-byte nonces: far fewer rows than 2^32."""
        return AESGCM(self._derive(_TEXT_INFO))

    def _derive(self, info: bytes) -> bytes:
        return HKDF(SHA256(), SECRET_BYTES, salt=None, info=info).derive(self.secret)


class Keys(Protocol):
    """What the store asks for keys; any thread."""

    def find(self, sequence_id: bytes) -> ConversationKey | None:
        """None: unknown, or destroyed."""
        ...

    def need(self, sequence_id: bytes) -> ConversationKey:
        """The sequence's key, made where there is none; durable when it returns. Raises StorageError."""
        ...


class MemoryKeys:
    """Keys that end with the process: for tests and measurements."""

    def __init__(self) -> None:
        self._keys: dict[bytes, ConversationKey] = {}

    def __repr__(self) -> str:
        return f"MemoryKeys({len(self._keys)})"

    def find(self, sequence_id: bytes) -> ConversationKey | None:
        """None: unknown, or destroyed."""
        return self._keys.get(sequence_id)

    def need(self, sequence_id: bytes) -> ConversationKey:
        """`setdefault` is atomic: two threads get one key."""
        return self._keys.get(sequence_id) or self._keys.setdefault(sequence_id, ConversationKey.generate())

    def destroy(self, sequence_id: bytes) -> None:
        """From now on nothing of the sequence can be read."""
        self._keys.pop(sequence_id, None)
