"""`edgekv check`: opens a data directory for the storage package's checker, as far as it can be opened.

Knows the lock, the keys and what to tell when either is not to be had; needs no model. The looking itself is
edgekv_storage.check.check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv.conversation.journal import translated
from edgekv.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekv.conversation.unlock import Unlock
    from edgekv_storage import Checked, DataDir, KeyChain


@dataclass(frozen=True, slots=True)
class Checkup:
    """`found` before anything was mended; `done`: what was; `left`: what is still wrong after that."""

    found: Checked
    done: list[str] = field(default_factory=list)
    left: Checked | None = None

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong now."""
        return not (self.left or self.found).problems


def check_up(
    path: Path,
    unlock: Unlock,
    *,
    fix: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Checkup:
    """Looks at a data directory, and mends it with `fix`, which needs its lock.

    Raises StoreError where it cannot be looked at: no such directory, in use (with `fix`), no passphrase.
    """
    from edgekv_storage import DataDir, check_directory, fix_directory  # noqa: PLC0415  numpy comes with it

    if not (path / "meta.json").exists():
        raise StoreError(f"{path} is not a data directory of edgekv: there is no meta.json; see --data-dir")
    with translated(), DataDir.open(path) if fix else DataDir.open_read_only(path) as directory:
        keys = _open_keys(directory, unlock)
        found = check_directory(directory, keys, progress)
        found.notes += [
            f"conversation {chat.name!r}: damaged turns are rebuilt when it is opened with its model, as far as "
            "their tokens are stored"
            for chat in found.conversations
            if chat.damaged_turns and chat.name is not None
        ]
        if not fix:
            return Checkup(found)
        done = fix_directory(directory, keys, found)
        return Checkup(found, done, check_directory(directory, keys, progress))


def _open_keys(directory: DataDir, unlock: Unlock) -> KeyChain | None:
    """Never makes keys: what is encrypted and has lost its keys.db must be reported, not covered up."""
    return unlock.open(directory) if (directory.path / "keys.db").exists() else None
