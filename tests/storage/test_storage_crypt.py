"""Seals and keys: what opens, what does not, what is never shown."""

from __future__ import annotations

import pickle
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from edgekv_storage.crypt import ConversationKey, MemoryKeys, PlainSeal, open_bytes, seal_bytes

SECRET, KEY_ID = bytes(range(32)), b"k" * 16
KEY = ConversationKey(SECRET, KEY_ID)
SEALS = [PlainSeal(), KEY.segment_seal(3, 99)]


@pytest.mark.parametrize("seal", SEALS, ids=["plain", "encrypted"])
@given(data=st.binary(max_size=300), bit=st.integers(0, 8 * 316 - 1))
def test_a_piece_opens_and_a_flipped_one_does_not(seal, data, bit):
    """Guards both seals: what went in comes out, and any single flipped bit of bytes or tag is seen."""
    sealed, tag = seal_bytes(seal, 7, 11, b"context", data)
    assert len(sealed) == len(data)
    assert open_bytes(seal, 7, 11, b"context", sealed, tag) == data
    joined = bytearray(sealed + tag)
    bit %= 8 * len(joined)
    joined[bit // 8] ^= 1 << bit % 8
    assert open_bytes(seal, 7, 11, b"context", joined[: len(data)], bytes(joined[len(data) :])) is None


def test_a_piece_opens_only_where_it_belongs():
    """Guards against moved leaves: another record, index, context, segment, conversation does not open it."""
    sealed, tag = seal_bytes(SEALS[1], 1, 2, b"c", b"private" * 9)
    assert open_bytes(KEY.segment_seal(3, 99), 1, 2, b"c", sealed, tag) == b"private" * 9
    other = ConversationKey(bytes(32), KEY_ID)
    for seal in (KEY.segment_seal(3, 98), KEY.segment_seal(4, 99), other.segment_seal(3, 99)):
        assert open_bytes(seal, 1, 2, b"c", sealed, tag) is None
    for place in ((0, 2, b"c"), (1, 3, b"c"), (1, 2, b"d"), (1, 2, b"")):
        assert open_bytes(SEALS[1], *place, sealed, tag) is None


def test_the_bytes_are_those_of_the_document():
    """Guards docs/format.md: another program must be able to derive the keys and open a piece."""

    def derive(info: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt=None, info=info).derive(SECRET)

    place = (3).to_bytes(8, "little") + (99).to_bytes(8, "little")
    sealed, tag = seal_bytes(SEALS[1], 5, 2**63 + 1, b"header", b"abstract")
    nonce = (5).to_bytes(4, "little") + (2**63 + 1).to_bytes(8, "little")
    assert AESGCM(derive(b"edgekv segment" + place)).decrypt(nonce, sealed + tag, b"header") == b"abstract"
    assert KEY.leaf_secret == derive(b"edgekv leaf keys")
    assert (
        AESGCM(derive(b"edgekv transcript")).decrypt(
            b"n" * 12, KEY.text_seal().encrypt(b"n" * 12, b"hello", None), None
        )
        == b"hello"
    )


def test_a_numbering_that_would_repeat_a_nonce_is_refused():
    """Guards nonces: a record number past 32 bits must fail, not wrap around to one used before."""
    with pytest.raises(struct.error):
        seal_bytes(SEALS[1], 2**32, 0, b"", b"x")


def test_secrets_are_never_shown():
    """Guards logs and tracebacks: neither repr nor str of anything that holds a key contains it."""
    keys = MemoryKeys()
    key = keys.need(b"conversation")
    shown = "".join(f"{o!r}{o}" for o in (KEY, key, keys, SEALS[1], keys.find(b"conversation")))
    for secret in (SECRET, key.secret, key.leaf_secret):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
    with pytest.raises(TypeError):
        pickle.dumps(SEALS[1])


def test_memory_keys_are_one_per_conversation_until_destroyed():
    """Guards `need`: the same key again, another for another conversation, a new one after `destroy`."""
    keys = MemoryKeys()
    assert keys.find(b"a") is None
    key = keys.need(b"a")
    assert keys.need(b"a") is keys.find(b"a") is key
    assert keys.need(b"b").secret != key.secret
    keys.destroy(b"a")
    assert keys.find(b"a") is None
    assert keys.need(b"a").secret != key.secret


@pytest.mark.parametrize(("secret", "key_id"), [(b"short", KEY_ID), (SECRET, b"short"), (SECRET, bytes(16))])
def test_half_a_key_is_refused(secret, key_id):
    """Guards against a truncated or zero key read back from a damaged key chain."""
    with pytest.raises(ValueError):
        ConversationKey(secret, key_id)
