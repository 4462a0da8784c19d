"""How this process gets at the keys of a data directory: what the options say, and a passphrase.

Knows options and the storage package's key chain; needs no model. The passphrase is kept out of the options,
so that no table, file, command line or repr shows it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edgekv.config import PASSPHRASE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekv.config import Config
    from edgekv_storage import DataDir, KeyChain, Unlocking


@dataclass(frozen=True, slots=True)
class Unlock:
    """The default is what `Config()` says: encrypted, whatever protects the keys already."""

    is_encrypted: bool = True
    protection: Literal["auto", "keyring", "passphrase", "file"] = "auto"
    key_file: Path | None = None
    passphrase: Callable[[str], str] | str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, config: Config, passphrase: Callable[[str], str] | str | None = None) -> Unlock:
        """What `config` asks for; a passphrase in the environment goes before one that would be asked."""
        given = (
            passphrase if isinstance(passphrase, str) else os.environ.get(PASSPHRASE_VARIABLE) or passphrase
        )
        return cls(config.encryption == "on", config.key_protection, config.key_file, given)

    def storage_unlocking(self) -> Unlocking:
        """As the storage package takes it."""
        from edgekv_storage import Unlocking  # noqa: PLC0415  numpy comes with it

        return Unlocking(self.passphrase, self.key_file)

    def open(self, data_dir: DataDir) -> KeyChain | None:
        """The keys of `data_dir`, made where there are none yet; None where nothing is encrypted.

        Raises edgekv_storage.StorageError: KeyUnavailable and its relatives say what to do.
        """
        from edgekv_storage import KeyChain, KeyUnavailable  # noqa: PLC0415  numpy comes with it

        if self.is_encrypted:
            return KeyChain.open(data_dir, protection=self.protection, unlocking=self.storage_unlocking())
        if (data_dir.path / "keys.db").exists():
            raise KeyUnavailable(
                f"{data_dir.path} is encrypted: leave --encryption off out, or choose another --data-dir"
            )
        return None
