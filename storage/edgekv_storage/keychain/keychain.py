"""The key chain of a data directory: a random key for each conversation, all wrapped by one master key.

keys.db holds the wrapped keys and says how the master key is protected (keyring, passphrase or file). To
destroy a wrapped key makes everything it sealed unreadable, wherever copies of the sealed bytes are. Knows
neither segments nor transcripts. Any thread.
"""

from __future__ import annotations

import hmac
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgekv_storage.crypt import SECRET_BYTES, ConversationKey
from edgekv_storage.errors import KeysDamaged, KeyUnavailable, NoSuchConversation, Unwritable, WrongCode
from edgekv_storage.keychain import protectors
from edgekv_storage.keychain.keytable import KeyTable, Master, Wrapped
from edgekv_storage.keychain.recovery import MASTER_BYTES, decode_recovery, encode_recovery
from edgekv_storage.keychain.unlocking import KINDS, RECOVER, Place, Unlocking

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from edgekv_storage.datadir import DataDir
    from edgekv_storage.keychain.unlocking import Kind, Protection

_NONCE_BYTES = 12
_WORDS = {"keyring": "the keyring", "passphrase": "a passphrase", "file": "a key file"}


@dataclass(frozen=True, slots=True)
class ProtectionInfo:
    """What protects a data directory, found without opening its master key.

    `kind`: keyring, passphrase or file. `key_file`: where that lies. `recovery_told`: when a recovery code of
    the present key was shown (Unix time), None if never. `generation`: 1, and one more at each rotation.
    """

    kind: str
    generation: int
    created: float
    num_keys: int
    recovery_told: float | None
    key_file: Path | None


class KeyChain:
    """The opened keys of one data directory; implements `Keys`. Its repr shows no secret."""

    def __init__(self, directory: DataDir, table: KeyTable, master: Master, secret: bytes) -> None:
        """Use `KeyChain.open`."""
        self.notices: list[str] = []
        self.directory = directory
        self._table = table
        self._about = table.about()
        self._master = master
        self._secret = secret
        self._wrapper = _wrapper(secret)
        self._lock = threading.RLock()
        self._open: dict[bytes, ConversationKey] = {}
        self._rows: dict[bytes, Wrapped] | None = None  # all at once: a start asks for every conversation's

    @classmethod
    def open(
        cls,
        directory: DataDir,
        *,
        protection: Protection = "auto",
        unlocking: Unlocking = Unlocking(),  # noqa: B008  frozen
    ) -> Self:
        """Opens the keys of `directory`; makes them where there is nothing to open yet.

        `protection` other than auto must be what protects the keys already. Raises KeyUnavailable (with what
        to do), WrongPassphrase, KeysDamaged, Unwritable; whatever was there is left as it was.
        """
        table = KeyTable(directory.path, is_writable=directory.is_writable)
        master = table.master() if table.exists() else None
        if master is None:
            return cls._create(directory, table, protection, unlocking)
        if protection not in ("auto", master.kind):
            raise KeyUnavailable(
                f"{directory.path} is protected by {_WORDS.get(master.kind, master.kind)}, not by "
                f"{_WORDS[protection]}: `edgekv key rotate` changes that; or leave --key-protection out"
            )
        place = Place(directory.path, table.about().store_id, master.generation)
        secret = protectors.fetch(master.kind, master.parameters, place, unlocking)
        if not _proves(master, secret, place):
            raise KeyUnavailable(
                f"the key in the {master.kind} is not the one of {directory.path}: it belongs to another data "
                f"directory; put the right one there, {RECOVER}"
            )
        chain = cls(directory, table, master, secret)
        chain._tidy()
        return chain

    @classmethod
    def _create(
        cls, directory: DataDir, table: KeyTable, protection: Protection, unlocking: Unlocking
    ) -> Self:
        _refuse_over_data(directory.path)
        if not directory.is_writable:
            raise Unwritable(f"{directory.path} has no keys yet, and this process may not write there")
        kind = protectors.choose_kind(protection, unlocking)
        table.create()
        _remove_strays(table, directory.path, 0)  # of a first start that was cut off
        secret = os.urandom(MASTER_BYTES)
        master = _keep(table, directory.path, 1, kind, secret, unlocking)
        table.put_master(master, [], None)
        chain = cls(directory, table, master, secret)
        chain._tidy()
        if kind == "file":
            chain.notices.append(file_warning(protectors.key_path(master.parameters, chain._place())))
        return chain

    # Keys of conversations

    def find(self, sequence_id: bytes) -> ConversationKey | None:
        """None when it is unknown or was destroyed. A damaged one is None too, and a notice says so."""
        self.directory.require_own_process()  # before the lock, which a child made by fork may never get
        with self._lock:
            known = self._open.get(sequence_id)
            if known is not None:
                return known
            row = self._row(sequence_id)
            if row is None or row.wrapped is None:
                return None
            key = self._unwrap(row)
            if key is None:
                self._require_present_master()
                self.notices.append(_damaged(sequence_id))
                return None
            self._open[sequence_id] = key
            return key

    def need(self, sequence_id: bytes) -> ConversationKey:
        """The key of a sequence, made and durable where there was none.

        Raises KeysDamaged where there is one that cannot be read: a new one over old data would lose it;
        NoSuchConversation where it was destroyed.
        """
        self.directory.require_own_process()
        with self._lock:
            found = self.find(sequence_id)
            if found is not None:
                return found
            row = self._row(sequence_id)
            if row is not None and row.wrapped is None:
                raise NoSuchConversation("this conversation was forgotten: its key is destroyed")
            if row is not None:
                raise KeysDamaged(_damaged(sequence_id))
            key = ConversationKey.generate()
            added = _wrap(self._wrapper, sequence_id, key)
            self._table.add_key(added)
            self._open[sequence_id] = key
            if self._rows is not None:
                self._rows[sequence_id] = added
            return key

    def destroy(self, sequence_id: bytes) -> None:
        """From now on nothing sealed for the sequence can be read; durable when it returns.

        Until `finish` the chain remembers that something may have to be deleted still.
        """
        self.directory.require_own_process()
        with self._lock:
            self._open.pop(sequence_id, None)
            self._table.destroy_key(sequence_id)
            self._rows = None

    def destroyed(self) -> list[bytes]:
        """Sequences whose key is gone and whose data may be there still: delete it, then `finish`."""
        return [row.sequence_id for row in self._table.rows() if row.wrapped is None]

    def finish(self, sequence_id: bytes) -> None:
        """Nothing of a destroyed sequence is left: its last trace goes."""
        self.directory.require_own_process()
        with self._lock:
            self._table.drop_key(sequence_id)
            self._rows = None

    # The master key

    @property
    def kind(self) -> str:
        """keyring, passphrase or file."""
        return self._master.kind

    def rotate(self, protection: Protection = "auto", unlocking: Unlocking = Unlocking()) -> None:  # noqa: B008
        """A new master key, protected as asked (auto: as before). The old one and its recovery code end.

        Killed at any moment it leaves a chain that opens. Raises KeyUnavailable, with nothing changed.
        """
        self.directory.require_own_process()
        kind = self._same_kind() if protection == "auto" else protectors.choose_kind(protection, unlocking)
        self._replace(kind, os.urandom(MASTER_BYTES), unlocking, recovery_told=None)

    def export_recovery(self) -> str:
        """The recovery code of the present master key; opens everything, so it is for paper or a vault."""
        code = encode_recovery(self._secret)
        if self.directory.is_writable:
            self._table.set_recovery_told(time.time())
        return code

    @classmethod
    def recover(
        cls,
        directory: DataDir,
        code: str,
        *,
        protection: Protection = "auto",
        unlocking: Unlocking = Unlocking(),  # noqa: B008  frozen
    ) -> Self:
        """Opens the keys with a recovery code and protects the same master key anew; the code stays good.

        Raises WrongCode, KeyUnavailable, KeysDamaged; nothing was changed then.
        """
        directory.require_writable()
        secret = decode_recovery(code)
        table = KeyTable(directory.path, is_writable=True)
        master = table.master() if table.exists() else None
        if master is None:
            raise KeysDamaged(f"{directory.path} has no keys.db: restore it from a backup first")
        place = Place(directory.path, table.about().store_id, master.generation)
        if not _proves(master, secret, place):
            raise WrongCode(
                f"this code is not of {directory.path}, or of an earlier key of it (`edgekv key rotate` "
                "makes a new one); nothing was changed"
            )
        chain = cls(directory, table, master, secret)
        told = table.about().recovery_told or time.time()
        chain._replace(protectors.choose_kind(protection, unlocking), secret, unlocking, recovery_told=told)
        return chain

    def info(self) -> ProtectionInfo:
        """What protects the keys."""
        found = look(self.directory.path)
        assert found is not None, "the chain is open"
        return found

    def _same_kind(self) -> Kind:
        return next(kind for kind in KINDS if kind == self._master.kind)

    def _replace(
        self, kind: Kind, secret: bytes, unlocking: Unlocking, *, recovery_told: float | None
    ) -> None:
        """Store the new secret, change over in one transaction, remove the old secret."""
        with self._lock:
            rows = self._table.rows()
            keys = [(row.sequence_id, key) for row in rows if (key := self._unwrap(row)) is not None]
            generation = max([self._master.generation, *(stray[0] for stray in self._table.strays())]) + 1
            master = _keep(self._table, self.directory.path, generation, kind, secret, unlocking)
            wrapper = _wrapper(secret)
            rewrapped = [_wrap(wrapper, sequence_id, key) for sequence_id, key in keys]
            self._table.put_master(master, rewrapped, recovery_told)  # from here on the new one counts
            self._master, self._secret, self._wrapper, self._rows = master, secret, wrapper, None
            self._tidy(KINDS)

    def _tidy(self, tell_of: Collection[str] = ("file",)) -> None:
        """Remove secrets that are not in use: replaced ones, and those of attempts that were cut off.

        `tell_of`: kinds whose secrets are worth a notice when they stay; each start tries again.
        """
        if self.directory.is_writable:
            left = _remove_strays(self._table, self.directory.path, self._master.generation)
            self.notices += [told for kind, told in left if kind in tell_of and told not in self.notices]

    def _require_present_master(self) -> None:
        """Raises KeyUnavailable where another process has replaced the master key: nothing is damaged then."""
        found = None if self.directory.is_writable else self._table.master()
        if found is not None and found.generation != self._master.generation:
            raise KeyUnavailable(
                f"the master key of {self.directory.path} was replaced meanwhile (`edgekv key rotate`): end this "
                "program and start it again"
            )

    def _row(self, sequence_id: bytes) -> Wrapped | None:
        """Only the lock's holder writes rows, so what it read stays true; a reader looks again."""
        if self._rows is None:
            self._rows = {row.sequence_id: row for row in self._table.rows()}
        found = self._rows.get(sequence_id)
        return found if found is not None or self.directory.is_writable else self._table.row(sequence_id)

    def _place(self) -> Place:
        return Place(self.directory.path, self._about.store_id, self._master.generation)

    def _unwrap(self, row: Wrapped) -> ConversationKey | None:
        """None for a destroyed or damaged one."""
        if row.wrapped is None:
            return None
        try:
            secret = self._wrapper.decrypt(
                row.wrapped[:_NONCE_BYTES], row.wrapped[_NONCE_BYTES:], _bound_to(row.sequence_id, row.key_id)
            )
            return ConversationKey(secret, row.key_id)
        except (InvalidTag, TypeError, ValueError):
            return None


def look(path: Path) -> ProtectionInfo | None:
    """What protects the data directory at `path`, without unlocking or changing anything; None: nothing does.

    Raises KeysDamaged, Unwritable.
    """
    table = KeyTable(path, is_writable=False)
    master = table.master() if table.exists() else None
    if master is None:
        return None
    about = table.about()
    key_file = None
    if master.kind == "file":
        key_file = protectors.key_path(master.parameters, Place(path, about.store_id, master.generation))
    num_keys = sum(row.wrapped is not None for row in table.rows())
    return ProtectionInfo(
        master.kind, master.generation, master.created, num_keys, about.recovery_told, key_file
    )


def file_warning(path: Path) -> str:
    """What a person has to know who has neither a keyring nor a passphrase."""
    return (
        f"conversations are encrypted, but their key lies in a file ({path}): whoever can copy both can read "
        "them; `edgekv key rotate --key-protection passphrase` closes that"
    )


def _refuse_over_data(path: Path) -> None:
    """New keys beside old data would make a lost keys.db look like an empty directory."""
    transcripts = path / "transcripts.db"
    has_text = os.path.lexists(transcripts) and (transcripts.is_symlink() or transcripts.stat().st_size > 0)
    if has_text or next(path.glob("seg-*.kv"), None) is not None:
        raise KeysDamaged(
            f"{path} holds conversations, but its keys.db is missing: restore keys.db from a backup, or choose "
            "another --data-dir; if they were never encrypted, start with --encryption off"
        )


def _keep(
    table: KeyTable, directory: Path, generation: int, kind: Kind, secret: bytes, unlocking: Unlocking
) -> Master:
    """Stores a master key where it can be found even if the process ends before it is used."""
    place = Place(directory, table.about().store_id, generation)
    table.note_stray(generation, kind, protectors.expected_parameters(kind, place, unlocking))
    parameters = protectors.keep(kind, place, secret, unlocking)
    return Master(generation, kind, parameters, _proof(secret, place), time.time())


def _remove_strays(table: KeyTable, directory: Path, current: int) -> list[tuple[str, str]]:
    """Kind and a line about each that could not be removed."""
    left = []
    for generation, kind, parameters in table.strays():
        place = Place(directory, table.about().store_id, generation)
        if generation == current or protectors.discard(kind, parameters, place):
            table.drop_stray(generation)
        else:
            left.append((kind, protectors.left_behind(kind, parameters, place)))
    return left


def _wrapper(secret: bytes) -> AESGCM:
    return AESGCM(_derive(secret, b"edgekv wrap keys"))


def _proof(secret: bytes, place: Place) -> bytes:
    return _derive(secret, b"edgekv proof" + place.store_id)


def _proves(master: Master, secret: bytes, place: Place) -> bool:
    return hmac.compare_digest(master.proof, _proof(secret, place))


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), SECRET_BYTES, salt=None, info=info).derive(secret)


def _wrap(wrapper: AESGCM, sequence_id: bytes, key: ConversationKey) -> Wrapped:
    nonce = os.urandom(_NONCE_BYTES)
    sealed = nonce + wrapper.encrypt(nonce, key.secret, _bound_to(sequence_id, key.key_id))
    return Wrapped(sequence_id, key.key_id, sealed)


def _bound_to(sequence_id: bytes, key_id: bytes) -> bytes:
    """Associated data; the key id has a fixed length, so no two pairs look alike."""
    return b"edgekv key" + key_id + sequence_id


def _damaged(sequence_id: bytes) -> str:
    return (
        f"the key of conversation {sequence_id.hex()[:8]} in keys.db is damaged: what it sealed cannot be read; "
        "restore keys.db from a backup"
    )
