"""The master key of a data directory: its recovery code, its replacement, and what protects it, in words.

Needs no model. Whoever changes something takes the directory's lock.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from edgekv.config import NEW_PASSPHRASE_VARIABLE
from edgekv.conversation.journal import translated
from edgekv.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgekv.config import Config
    from edgekv.conversation.unlock import Unlock
    from edgekv_storage import KeyChain, Protection, ProtectionInfo

PROTECTS = {
    "keyring": "the keyring opens with your login; a stolen drive or a copied folder is unreadable without it",
    "passphrase": "a stolen drive or a copied folder is only as safe as the passphrase is hard to guess",
    "file": "whoever can copy the key file and the data can read them; another protection closes that",
}
LIMITS = "programs that run as you, and memory or swap while edgekv runs, are not kept out"


class Told(NamedTuple):
    """One line about protection: `is_fine` is False for what a person should change."""

    name: str
    value: str
    why: str
    is_fine: bool = True


class Protected(NamedTuple):
    """What protects the keys now (keyring, passphrase or file), and what a person should know, a line each."""

    kind: str
    notices: tuple[str, ...]


@contextmanager
def _opened(path: Path, unlock: Unlock) -> Iterator[KeyChain]:
    from edgekv_storage import DataDir, KeyChain, look_at_protection  # noqa: PLC0415  numpy comes with it

    with translated():
        if not path.is_dir() or look_at_protection(path) is None:
            raise StoreError(f"{path} has no keys: nothing encrypted was kept there yet")
        with DataDir.open(path) as data_dir:
            # What protects them now is what is opened; an option says what shall protect them.
            yield KeyChain.open(data_dir, unlocking=unlock.storage_unlocking())


def export_code(path: Path, unlock: Unlock) -> str:
    """The recovery code; it opens everything, and is remembered as shown."""
    with _opened(path, unlock) as chain:
        return chain.export_recovery()


def rotate(
    path: Path,
    unlock: Unlock,
    protection: Protection,
    new_passphrase: str | None = None,
    *,
    ask: Callable[[str], str] | None = None,
) -> Protected:
    """A new master key for the same data; the old one and its recovery code end.

    `ask` is for a new passphrase where one is needed and none is given; without it the old one stays. Raises
    ConfigError for a new passphrase that nothing would use.
    """
    from edgekv_storage import Unlocking  # noqa: PLC0415  numpy comes with it

    with _opened(path, unlock) as chain:
        kind = chain.kind if protection == "auto" else protection
        if new_passphrase is not None and kind != "passphrase":
            raise ConfigError(
                f"a new passphrase was given ({NEW_PASSPHRASE_VARIABLE}), and the key would be protected by: "
                f"{kind}; add --key-protection passphrase, or leave the passphrase out"
            )
        given = new_passphrase or ask or unlock.passphrase
        chain.rotate(protection, Unlocking(given, unlock.key_file))
        return Protected(chain.kind, tuple(chain.notices))


def recover(path: Path, code: str, unlock: Unlock) -> Protected:
    """Open the keys with a recovery code and protect them anew."""
    from edgekv_storage import DataDir, KeyChain, look_at_protection  # noqa: PLC0415  numpy comes with it

    with translated():
        if not path.is_dir() or look_at_protection(path) is None:  # nothing is made in a foreign folder
            raise StoreError(f"{path} has no keys.db; put the data back first, then recover its key")
    with translated(), DataDir.open(path) as data_dir:
        chain = KeyChain.recover(
            data_dir, code, protection=unlock.protection, unlocking=unlock.storage_unlocking()
        )
        return Protected(chain.kind, tuple(chain.notices))


def describe(config: Config) -> list[Told]:
    """What protects the data directory and what does not; looks only. Raises StoreError."""
    from edgekv_storage import look_at_protection  # noqa: PLC0415  numpy comes with it

    if config.encryption == "off":
        return [
            Told("encryption", "off", "whoever can read the files can read the conversations", is_fine=False)
        ]
    with translated():
        info = look_at_protection(config.data_dir) if config.data_dir.is_dir() else None
    value = "AES-256-GCM, a key for each conversation"
    if info is None:
        return [Told("encryption", value, LIMITS), _planned(config)]
    return [Told("encryption", value, LIMITS), _protector(info), _recovery(info)]


def _planned(config: Config) -> Told:
    from edgekv.conversation.unlock import Unlock  # noqa: PLC0415  only here
    from edgekv_storage import choose_kind  # noqa: PLC0415  numpy comes with it

    unlock = Unlock.of(config)
    with translated():
        kind = choose_kind(unlock.protection, unlock.storage_unlocking())
    return Told("keys", f"{kind} (not there yet)", PROTECTS[kind], is_fine=kind != "file")


def _protector(info: ProtectionInfo) -> Told:
    place = "" if info.key_file is None else f" {info.key_file}"
    what = PROTECTS.get(info.kind, "this edgekv does not know it")
    why = f"{info.num_keys} conversations, master key {info.generation}; {what}"
    return Told("keys", f"{info.kind}{place}", why, is_fine=info.kind != "file")


def _recovery(info: ProtectionInfo) -> Told:
    if info.recovery_told is None:
        why = f"without it a lost {info.kind} means lost conversations: `edgekv key export`"
        return Told("recovery_code", "never shown", why, is_fine=False)
    day = time.strftime("%Y-%m-%d", time.localtime(info.recovery_told))
    return Told("recovery_code", f"shown on {day}", "opens the data where everything else is lost")
