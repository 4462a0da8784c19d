"""What is given to reach a master key, and whose master key it is. Types and words only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Kind = Literal["keyring", "passphrase", "file"]
Protection = Literal["auto", "keyring", "passphrase", "file"]
KINDS: tuple[Kind, ...] = ("keyring", "passphrase", "file")
RECOVER = "or bring the key back with `edgekv key recover` and the recovery code"


@dataclass(frozen=True, slots=True)
class Unlocking:
    """What a person or program gave to reach the master key; never shown.

    `passphrase`: the text, or who asks for it (gets the question, returns the answer).
    """

    passphrase: Callable[[str], str] | str | None = field(default=None, repr=False)
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Whose secret it is: the directory, the id of its keys.db, and the master key's generation."""

    directory: Path
    store_id: bytes
    generation: int

    @property
    def account(self) -> str:
        """The name of the entry in a keyring."""
        return f"{self.store_id.hex()}/{self.generation}"
