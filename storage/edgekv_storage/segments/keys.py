"""The key chain: one 16-byte key per full leaf, each depending on everything before it.

Knows token ids and bytes; not where leaves lie. A key only finds candidates: at a hit the stored ids decide.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from edgekv_storage.crypt import NO_LEAF_SECRET, SECRET_BYTES
from edgekv_storage.segments.format import IDS_BYTES, KEY_BYTES, LEAF_TOKENS, NO_PARENT

if TYPE_CHECKING:
    from numpy.typing import NDArray


def leaf_keys(
    fingerprint: bytes,
    namespace: bytes,
    token_ids: NDArray[np.int32],
    parent: bytes | None = None,
    secret: bytes = NO_LEAF_SECRET,
) -> list[bytes]:
    """Keys of the full leaves of `token_ids` [T]; the last T % 16 ids have none.

    `parent` is the key of the leaf before the first id, None at the sequence's start. `namespace` holds what
    else the KV depends on (the attention mode). `secret` [32] is the conversation's, so that whoever sees
    keys cannot test guesses of the text against them; without encryption there is none. BLAKE2b rather than
    a faster non-cryptographic hash: ten milliseconds per 100,000 tokens buy that nobody can construct two
    texts with one key.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a leaf secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if parent is not None and len(parent) != KEY_BYTES:
        raise ValueError(f"a leaf key has {KEY_BYTES} bytes, not {len(parent)}")
    num_leaves = len(token_ids) // LEAF_TOKENS
    ids = np.ascontiguousarray(token_ids[: num_leaves * LEAF_TOKENS], dtype="<i4").tobytes()
    named = len(namespace).to_bytes(8, "little") + namespace
    prefix = hashlib.blake2b(named, key=fingerprint + secret, digest_size=32).digest()
    key = NO_PARENT if parent is None else parent
    keys = []
    for at in range(0, len(ids), IDS_BYTES):
        key = hashlib.blake2b(prefix + key + ids[at : at + IDS_BYTES], digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys
