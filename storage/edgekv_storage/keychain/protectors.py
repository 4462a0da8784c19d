"""Where the master key lies: the operating system's keyring, a passphrase's lock, or a private file.

Each protector keeps one secret of 32 bytes per generation and returns the parameters that keys.db holds to
find it again. Knows nothing of conversations.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from edgekv_storage.errors import KeysDamaged, KeyUnavailable, WrongCode
from edgekv_storage.keychain import keyfile, oskeyring, passphrase
from edgekv_storage.keychain.recovery import decode_recovery, encode_recovery
from edgekv_storage.keychain.unlocking import RECOVER

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv_storage.keychain.unlocking import Kind, Place, Protection, Unlocking


def choose_kind(protection: Protection, unlocking: Unlocking) -> Kind:
    """What a new master key is protected by. Raises KeyUnavailable for a keyring that cannot be used.

    A passphrase that was given is never ignored; otherwise the keyring goes before the key file.
    """
    if protection == "keyring":
        reason = oskeyring.unusable()
        if reason is not None:
            raise KeyUnavailable(
                f"the keyring cannot be used ({reason}); choose --key-protection passphrase or file"
            )
    if protection != "auto":
        return protection
    if isinstance(unlocking.passphrase, str):
        return "passphrase"
    if unlocking.key_file is not None:
        return "file"
    return "keyring" if oskeyring.unusable() is None else "file"


def keep(kind: Kind, place: Place, master: bytes, unlocking: Unlocking) -> str:
    """Stores the master key durably; the parameters that `fetch` needs. Raises KeyUnavailable."""
    if kind == "keyring":
        oskeyring.put(place.account, encode_recovery(master))
        return "{}"
    if kind == "passphrase":
        return passphrase.lock(place, master, passphrase.ask_new(place, unlocking))
    parameters = expected_parameters(kind, place, unlocking)
    keyfile.write(key_path(parameters, place), place, master)
    return parameters


def fetch(kind: str, parameters: str, place: Place, unlocking: Unlocking) -> bytes:
    """The master key. Raises KeyUnavailable, WrongPassphrase, KeysDamaged."""
    if kind == "keyring":
        return _from_keyring(place)
    if kind == "passphrase":
        return passphrase.unlock(read_parameters(parameters), place, unlocking)
    if kind == "file":
        path = key_path(parameters, place)
        moved = unlocking.key_file is not None and not path.exists()
        return keyfile.read(unlocking.key_file if moved and unlocking.key_file else path, place)
    raise KeysDamaged(f"keys.db names an unknown protection {kind!r}: update edgekv, nothing was touched")


def discard(kind: str, parameters: str, place: Place) -> bool:
    """Removes a master key that is no longer used; False when it could not be (to be tried again)."""
    with contextlib.suppress(OSError, KeyUnavailable, KeysDamaged):
        if kind == "keyring":
            oskeyring.remove(place.account)
        elif kind == "file":
            keyfile.remove(key_path(parameters, place), place)
        return True
    return False


def left_behind(kind: str, parameters: str, place: Place) -> str:
    """A line about a master key that `discard` could not remove."""
    where = str(key_path(parameters, place)) if kind == "file" else f"the keyring ({place.account})"
    return (
        f"an earlier master key could not be removed from {where}: it still opens older copies of keys.db; "
        "remove it by hand"
    )


def expected_parameters(kind: Kind, place: Place, unlocking: Unlocking) -> str:
    """What `keep` is about to use, noted before, so that a cut-off attempt can be cleaned up."""
    if kind != "file":
        return "{}"
    path = keyfile.new_path(place, unlocking)
    return json.dumps({"path": str(path) if path.parent != place.directory else path.name})


def read_parameters(text: str) -> dict[str, Any]:
    """The JSON object that keys.db holds. Raises KeysDamaged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeysDamaged(
            "keys.db is damaged (how its master key is protected): restore keys.db from a backup"
        ) from error
    if not isinstance(found, dict):
        raise KeysDamaged("keys.db is damaged (how its master key is protected): restore it from a backup")
    return found


def key_path(parameters: str, place: Place) -> Path:
    """Where the key file lies; a bare name is beside keys.db, so that a copied directory stays whole."""
    name = read_parameters(parameters).get("path")
    if not isinstance(name, str) or not name or "\0" in name:
        raise KeysDamaged("keys.db is damaged (where its key file is): restore it from a backup")
    return place.directory / name


def _from_keyring(place: Place) -> bytes:
    entry = oskeyring.get(place.account)
    if entry is None:
        raise KeyUnavailable(
            f"the keyring holds no key for {place.directory}: log in as the user who made it, {RECOVER}"
        )
    try:
        return decode_recovery(entry)
    except WrongCode as error:
        raise KeyUnavailable(
            f"the keyring's entry {place.account} is damaged: restore it, {RECOVER}"
        ) from error
