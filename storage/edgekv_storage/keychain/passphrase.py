"""A master key locked with a passphrase: Argon2id (scrypt where OpenSSL has none) and AES-256-GCM.

Parameters read back are bounded: a planted file can ask neither for 100 GB nor for an hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import unicodedata
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from edgekv_storage.errors import KeysDamaged, KeyUnavailable, WrongPassphrase
from edgekv_storage.keychain.recovery import MASTER_BYTES

if TYPE_CHECKING:
    from edgekv_storage.keychain.unlocking import Place, Unlocking

_NONCE_BYTES = 12
_SALT_BYTES = 16
_TAG_BYTES = 16
_ARGON2: dict[str, Any] = {"kdf": "argon2id", "iterations": 3, "lanes": 4, "memory_kib": 64 << 10}
_SCRYPT: dict[str, Any] = {"kdf": "scrypt", "n": 1 << 16, "r": 8, "p": 1}
_BOUNDS = {
    "iterations": (1, 16),
    "lanes": (1, 16),
    "memory_kib": (8 << 10, 1 << 20),
    "n": (1 << 12, 1 << 20),
    "r": (1, 16),
    "p": (1, 4),
}
_TRIES = 3


def ask_new(place: Place, unlocking: Unlocking) -> str:
    """The passphrase of a new master key; a person is asked twice. Raises KeyUnavailable."""
    given = unlocking.passphrase
    if given is None:
        raise KeyUnavailable(
            "a passphrase is needed: set EDGEKV_PASSPHRASE, give passphrase=, or start in a terminal"
        )
    text = given if isinstance(given, str) else given(f"New passphrase for {place.directory}")
    if not text:
        raise KeyUnavailable("an empty passphrase protects nothing; nothing was changed")
    if not isinstance(given, str) and given("The same again") != text:
        raise KeyUnavailable("the two passphrases differ; nothing was changed")
    return text


def lock(place: Place, master: bytes, passphrase: str) -> str:
    """The parameters that `unlock` needs beside the passphrase, the locked key among them."""
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    for cost in (_ARGON2, _SCRYPT):  # an OpenSSL before 3.2 has no Argon2
        parameters: dict[str, Any] = {**cost, "salt": salt.hex(), "nonce": nonce.hex()}
        with contextlib.suppress(UnsupportedAlgorithm):
            key = _derive(parameters, passphrase)
            parameters["sealed"] = AESGCM(key).encrypt(nonce, master, _bound_to(parameters, place)).hex()
            return json.dumps(parameters)
    raise KeyUnavailable(
        "this OpenSSL has neither Argon2 nor scrypt; choose --key-protection keyring or file"
    )


def unlock(parameters: dict[str, Any], place: Place, unlocking: Unlocking) -> bytes:
    """The master key; a person is asked up to three times. Raises WrongPassphrase and its relatives."""
    try:
        nonce, sealed = bytes.fromhex(parameters["nonce"]), bytes.fromhex(parameters["sealed"])
        assert (len(nonce), len(sealed)) == (_NONCE_BYTES, MASTER_BYTES + _TAG_BYTES), "of another length"
        bound = _bound_to(parameters, place)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise KeysDamaged("keys.db is damaged (the locked master key): restore it from a backup") from error
    given = unlocking.passphrase
    if given is None:
        raise KeyUnavailable(
            f"{place.directory} is locked with a passphrase: set EDGEKV_PASSPHRASE, give passphrase=, "
            "or start in a terminal"
        )
    for _ in range(1 if isinstance(given, str) else _TRIES):
        text = given if isinstance(given, str) else given(f"Passphrase for {place.directory}")
        if not text:
            break
        with contextlib.suppress(InvalidTag):
            return AESGCM(_derive(parameters, text)).decrypt(nonce, sealed, bound)
    raise WrongPassphrase(f"wrong passphrase for {place.directory}; nothing was changed")


def _bound_to(parameters: dict[str, Any], place: Place) -> bytes:
    """Associated data: parameters and place cannot be exchanged under a locked key."""
    fixed = {name: value for name, value in parameters.items() if name != "sealed"}
    return b"edgekv passphrase" + json.dumps([fixed, place.account], sort_keys=True).encode()


def _derive(parameters: dict[str, Any], passphrase: str) -> bytes:
    try:
        cost = {name: int(parameters[name]) for name in _BOUNDS if name in parameters}
        salt = bytes.fromhex(parameters["salt"])
        kdf = parameters["kdf"]
    except (KeyError, TypeError, ValueError) as error:
        raise KeysDamaged(
            "keys.db is damaged (the passphrase's parameters): restore it from a backup"
        ) from error
    for name, value in cost.items():
        least, most = _BOUNDS[name]
        if not least <= value <= most:
            raise KeysDamaged(
                f"keys.db asks for {name} = {value}, which no edgekv writes: it was tampered with"
            )
    secret = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")
    try:
        if kdf == "argon2id":
            return Argon2id(
                salt=salt,
                length=MASTER_BYTES,
                iterations=cost["iterations"],
                lanes=cost["lanes"],
                memory_cost=cost["memory_kib"],
            ).derive(secret)
        if kdf == "scrypt":
            return Scrypt(salt=salt, length=MASTER_BYTES, n=cost["n"], r=cost["r"], p=cost["p"]).derive(
                secret
            )
    except (KeyError, ValueError) as error:
        raise KeysDamaged(
            "keys.db is damaged (the passphrase's parameters): restore it from a backup"
        ) from error
    except MemoryError as error:
        raise KeyUnavailable("too little memory is free to check the passphrase; close something") from error
    raise KeysDamaged(f"keys.db names an unknown key derivation {kdf!r}: update edgekv, nothing was touched")
