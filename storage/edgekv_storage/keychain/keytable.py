"""keys.db: the wrapped conversation keys and how their master key is protected. SQLite, one file, no secrets.

Knows rows and transactions; not cryptography. A connection lives for one operation: no reader ever holds up
a writer, and no journal stays behind (a rollback journal, removed at each commit; deleted rows overwritten).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.errors import DiskFull, KeysDamaged, Unwritable
from edgekv_storage.files import NotAFile, open_private, sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "keys.db"
_VERSION = 1
_APPLICATION = 0x656B6B73  # "ekks"
_SCHEMA = f"""
CREATE TABLE about (one INTEGER PRIMARY KEY CHECK (one = 1), store_id BLOB NOT NULL, recovery_told REAL);
CREATE TABLE master (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL,
    kind TEXT NOT NULL, parameters TEXT NOT NULL, proof BLOB NOT NULL, created REAL NOT NULL);
CREATE TABLE strays (generation INTEGER NOT NULL, kind TEXT NOT NULL, parameters TEXT NOT NULL);
CREATE TABLE keys (sequence_id BLOB PRIMARY KEY, key_id BLOB NOT NULL, wrapped BLOB) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
# A damaged row may claim to be text, which would stop the reading of all others.
_KEYS = "SELECT CAST(sequence_id AS BLOB), CAST(key_id AS BLOB), CAST(wrapped AS BLOB) FROM keys"


class Master(NamedTuple):
    """`kind`, `parameters`: for `protectors.fetch`. `proof`: tells the right key. `created`: Unix time."""

    generation: int
    kind: str
    parameters: str
    proof: bytes
    created: float


class Wrapped(NamedTuple):
    """`wrapped` is None for a key that was destroyed and whose data may not all be deleted yet."""

    sequence_id: bytes
    key_id: bytes
    wrapped: bytes | None


class About(NamedTuple):
    """`store_id`: random, names this keys.db. `recovery_told`: when its recovery code was shown, or None."""

    store_id: bytes
    recovery_told: float | None


class KeyTable:
    """The rows of one keys.db; every method is one transaction that is durable when it returns."""

    def __init__(self, directory: Path, *, is_writable: bool) -> None:
        self.path = directory / NAME
        self._is_writable = is_writable

    def exists(self) -> bool:
        """Whether there is such a name, be it a link that leads nowhere; an empty file is none yet."""
        if self.path.is_symlink():
            return True
        return self.path.exists() and (not self.path.is_file() or self.path.stat().st_size > 0)

    def create(self) -> None:
        """An empty table 0600 under a new id; harmless on one whose creation was cut off."""
        try:
            os.close(open_private(self.path, os.O_RDWR | os.O_CREAT))
            sync_directory(self.path.parent)
        except OSError as error:
            raise Unwritable(f"cannot make {self.path}: {error.strerror}") from error
        with self._transaction() as db:
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
                    db.execute(statement)
                db.execute("INSERT INTO about VALUES (1, ?, NULL)", (os.urandom(16),))

    def about(self) -> About:
        """Raises KeysDamaged."""
        with self._reading() as db:
            row = db.execute("SELECT store_id, recovery_told FROM about").fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise KeysDamaged(f"{self.path} is damaged (it has no id): restore it from a backup")
        return About(*row)

    def master(self) -> Master | None:
        """None when its creation was cut off before the first key. Raises KeysDamaged."""
        with self._reading() as db:
            if not db.execute("PRAGMA page_count").fetchone()[0]:
                return None  # SQLite has just undone a creation that was cut off
            row = db.execute("SELECT generation, kind, parameters, proof, created FROM master").fetchone()
            if row is None and db.execute("SELECT 1 FROM keys").fetchone():
                raise KeysDamaged(f"{self.path} is damaged (no master key): restore it from a backup")
        if row is not None and tuple(map(type, row[:4])) != (int, str, str, bytes):
            raise KeysDamaged(f"{self.path} is damaged (its master key): restore it from a backup")
        return None if row is None else Master(*row)

    def strays(self) -> list[tuple[int, str, str]]:
        """(generation, kind, parameters) of secrets that were begun or replaced and not yet removed."""
        with self._reading() as db:
            return db.execute("SELECT generation, kind, parameters FROM strays").fetchall()

    def note_stray(self, generation: int, kind: str, parameters: str) -> None:
        """Before a secret is stored: a crash must not leave it forgotten."""
        with self._transaction() as db:
            db.execute("INSERT INTO strays VALUES (?,?,?)", (generation, kind, parameters))

    def drop_stray(self, generation: int) -> None:
        """It was removed."""
        with self._transaction() as db:
            db.execute("DELETE FROM strays WHERE generation = ?", (generation,))

    def put_master(self, new: Master, keys: list[Wrapped], recovery_told: float | None) -> None:
        """The new master key and all keys wrapped by it; what was there before becomes a stray."""
        with self._transaction() as db:
            db.execute("INSERT INTO strays SELECT generation, kind, parameters FROM master")
            db.execute("DELETE FROM strays WHERE generation = ?", (new.generation,))
            db.execute("DELETE FROM master")
            db.execute("INSERT INTO master VALUES (1,?,?,?,?,?)", new)
            db.execute("UPDATE about SET recovery_told = ?", (recovery_told,))
            changes = [(key.wrapped, key.sequence_id) for key in keys]
            db.executemany("UPDATE keys SET wrapped = ? WHERE sequence_id = ?", changes)

    def set_recovery_told(self, when: float) -> None:
        """When the recovery code of the present master key was shown."""
        with self._transaction() as db:
            db.execute("UPDATE about SET recovery_told = ?", (when,))

    def rows(self) -> list[Wrapped]:
        """All rows, destroyed ones included."""
        with self._reading() as db:
            return [Wrapped(*row) for row in db.execute(_KEYS)]

    def row(self, sequence_id: bytes) -> Wrapped | None:
        """One row."""
        with self._reading() as db:
            found = db.execute(_KEYS + " WHERE sequence_id = ?", (sequence_id,)).fetchone()
        return None if found is None else Wrapped(*found)

    def add_key(self, key: Wrapped) -> None:
        """A key that was not there."""
        with self._transaction() as db:
            db.execute("INSERT INTO keys VALUES (?,?,?)", key)

    def destroy_key(self, sequence_id: bytes) -> bool:
        """Overwrites the wrapped key, keeping that it was destroyed; False when there was no row."""
        with self._transaction() as db:
            found = db.execute(
                "UPDATE keys SET key_id = x'', wrapped = NULL WHERE sequence_id = ?", (sequence_id,)
            )
            return found.rowcount > 0

    def drop_key(self, sequence_id: bytes) -> None:
        """Nothing is left that the destroyed key could have opened."""
        with self._transaction() as db:
            db.execute("DELETE FROM keys WHERE sequence_id = ? AND wrapped IS NULL", (sequence_id,))

    # Connections

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as db:
            yield db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if not self._is_writable:
            raise Unwritable(f"{self.path} was opened for reading only: the directory is another process's")
        with self._connected() as db:
            db.execute("PRAGMA synchronous = EXTRA")  # FULL, and the journal's removal is durable too
            db.execute("PRAGMA secure_delete = ON")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        self._check_file()
        # Who only looks may have to undo what a killed writer left half done: SQLite's own lock makes that safe.
        is_cut_off = self.path.with_name(f"{NAME}-journal").exists() and os.access(self.path, os.W_OK)
        mode = "rw" if self._is_writable or is_cut_off else "ro"
        try:
            uri = f"{self.path.absolute().as_uri()}?mode={mode}"
            db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10, check_same_thread=False)
            try:
                self._check_version(db)
                yield db
            finally:
                db.close()
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # Python's own have none
            if code == sqlite3.SQLITE_FULL:
                raise DiskFull("the drive is full: no key was changed; free some space") from error
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
                raise Unwritable(f"{self.path} cannot be opened or written ({error})") from error
            if code in (
                sqlite3.SQLITE_ERROR,
                sqlite3.SQLITE_CORRUPT,
            ):  # a table or column that should be there is not
                raise KeysDamaged(f"{self.path} is damaged ({error}): restore it from a backup") from error
            raise Unwritable(f"{self.path}: {error}; nothing was changed") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise KeysDamaged(
                f"{self.path} is damaged ({error}): restore it from a backup; nothing was touched"
            ) from error

    def _check_file(self) -> None:
        """SQLite follows links and opens anything: looked at first, and closed to others."""
        try:
            fd = open_private(self.path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise KeysDamaged(f"{self.path} has vanished: restore it from a backup") from error
        except NotAFile as error:
            raise KeysDamaged(f"{self.path} is not an ordinary file; put the real one back") from error
        except OSError as error:
            raise Unwritable(f"cannot open {self.path}: {error.strerror}") from error
        try:
            if os.fstat(fd).st_mode & 0o077 and self._is_writable:
                with contextlib.suppress(OSError):
                    os.fchmod(fd, 0o600)
        finally:
            os.close(fd)

    def _check_version(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        is_empty = version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone()
        if is_empty:
            return
        if application != _APPLICATION:
            raise KeysDamaged(f"{self.path} was not made by edgekv; move it away, or restore the real one")
        if version != _VERSION:
            raise KeysDamaged(
                f"{self.path} has format {version}, this version reads {_VERSION}: update edgekv"
            )
