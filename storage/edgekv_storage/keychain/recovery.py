"""The recovery code: the master key written so that a person can type it.

Knows letters and a checksum; not what the key opens. Crockford's base32: no letter looks like a digit, and
whoever types O for 0 or l for 1 is understood.
"""

from __future__ import annotations

import hashlib

from edgekv_storage.errors import WrongCode

MASTER_BYTES = 32
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MEANT = str.maketrans({"O": "0", "I": "1", "L": "1"})
_SUM_BYTES = 3  # 35 bytes are exactly 56 letters: 14 groups of 4
_GROUP = 4
_NUM_LETTERS = (MASTER_BYTES + _SUM_BYTES) * 8 // 5


def encode_recovery(master: bytes) -> str:
    """14 groups of 4 letters and digits."""
    assert len(master) == MASTER_BYTES, "a master key has 32 bytes"
    number = int.from_bytes(master + _sum(master), "big")
    letters = [_ALPHABET[number >> shift & 31] for shift in range((_NUM_LETTERS - 1) * 5, -1, -5)]
    groups = ("".join(letters[at : at + _GROUP]) for at in range(0, _NUM_LETTERS, _GROUP))
    return "-".join(groups)


def decode_recovery(code: str) -> bytes:
    """The master key in `code`; case, blanks and dashes do not matter. Raises WrongCode."""
    letters = "".join(c for c in code.upper() if c.isalnum()).translate(_MEANT)
    if len(letters) != _NUM_LETTERS:
        raise WrongCode(
            f"a recovery code has {_NUM_LETTERS} letters and digits, this one has {len(letters)}: "
            "type all 14 groups"
        )
    strange = sorted(set(letters) - set(_ALPHABET))
    if strange:
        raise WrongCode(
            f"a recovery code has no {' '.join(map(repr, strange))}: compare it with what was noted"
        )
    number = 0
    for letter in letters:
        number = number << 5 | _ALPHABET.index(letter)
    data = number.to_bytes(MASTER_BYTES + _SUM_BYTES, "big")
    master = data[:MASTER_BYTES]
    if data[MASTER_BYTES:] != _sum(master):
        raise WrongCode("this recovery code has a slip of the pen: compare it letter by letter")
    return master


def _sum(master: bytes) -> bytes:
    return hashlib.blake2b(master, digest_size=_SUM_BYTES, person=b"edgekv recovery").digest()
