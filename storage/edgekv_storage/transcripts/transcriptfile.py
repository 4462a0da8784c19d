"""The file transcripts.db: made private, of a known format, its errors in words. Knows no rows."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from edgekv_storage.errors import (
    DiskFull,
    KeyUnavailable,
    StorageError,
    TranscriptDamaged,
    UnknownFormat,
    Unwritable,
)
from edgekv_storage.files import NotAFile, open_private, sync_directory
from edgekv_storage.looking import COPY_IT, open_to_look
from edgekv_storage.transcripts.tally import SCHEMA as TALLY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekv_storage.datadir import DataDir

_VERSION = 2
_SEALED, _PLAIN = 0x656B7473, 0x656B7470  # application_id "ekts", "ektp"
_SCHEMA = """
BEGIN;
CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, sequence_id BLOB NOT NULL, head INTEGER,
    turns INTEGER NOT NULL, created REAL NOT NULL, content BLOB NOT NULL);
CREATE TABLE turns (id INTEGER PRIMARY KEY AUTOINCREMENT, conversation INTEGER NOT NULL, parent INTEGER,
    created REAL NOT NULL, content BLOB NOT NULL);
CREATE INDEX turns_of ON turns (conversation, id);
{tally}
PRAGMA application_id = {application};
PRAGMA user_version = {version};
COMMIT;
"""


def connect(directory: DataDir, *, is_sealed: bool) -> sqlite3.Connection:
    """Opens or creates it; read-only when the directory is. Sealed rows and plain ones never share a file.

    Raises UnknownFormat, Unwritable, TranscriptDamaged; KeyUnavailable for the other kind of rows.
    """
    path = directory.path / "transcripts.db"
    is_writable = directory.is_writable
    try:
        is_new = is_writable and not path.exists()
        os.close(open_private(path, (os.O_RDWR | os.O_CREAT) if is_writable else os.O_RDONLY))
        if is_new:
            sync_directory(directory.path)
    except NotAFile as error:
        raise UnknownFormat(f"{path} is not an ordinary file; put the real one back") from error
    except OSError as error:
        raise Unwritable(f"cannot open {path}: {error.strerror}") from error
    with translated(path.name):
        if is_writable:
            uri = f"{path.absolute().as_uri()}?mode=rw"
            db = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=10)
        else:
            db = open_to_look(path)
        try:
            _prepare(db, is_writable=is_writable, is_sealed=is_sealed)
        except BaseException:
            db.close()
            raise
    return db


def _prepare(db: sqlite3.Connection, *, is_writable: bool, is_sealed: bool) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    _check_format(db, version, application, is_sealed=is_sealed)
    if not is_writable:
        return
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")
    if version == 0:
        db.executescript(
            _SCHEMA.format(tally=TALLY, application=_SEALED if is_sealed else _PLAIN, version=_VERSION)
        )


def _check_format(db: sqlite3.Connection, version: int, application: int, *, is_sealed: bool) -> None:
    if version == 1 and application == 0:
        raise UnknownFormat(
            "transcripts.db was written by an earlier edgekv: nothing was touched; move it away or choose "
            "another --data-dir"
        )
    if version == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    if application not in (_SEALED, _PLAIN):
        raise UnknownFormat(
            "transcripts.db was not made by edgekv; move it away or choose another --data-dir"
        )
    if version != _VERSION:
        raise UnknownFormat(
            f"transcripts.db has format {version}, this version reads {_VERSION}; nothing was touched: "
            "update edgekv"
        )
    if application == _SEALED and not is_sealed:
        raise KeyUnavailable(
            "the conversations here are encrypted: leave --encryption off out, or choose another --data-dir"
        )
    if application == _PLAIN and is_sealed:
        raise KeyUnavailable(
            "the conversations here are not encrypted: start with --encryption off, or choose another --data-dir"
        )


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """SQLite's errors as ours, in one line: a full drive, a damaged file; the rest is shown as it is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # Python's own have none
        code = extended & 0xFF
        if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:
            raise DiskFull(f"the drive is full: {name} was not changed; free some space") from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise Unwritable(f"{name} cannot be written or opened ({error}): {COPY_IT}") from error
        advice = ": is the drive full, or failing?" if code == sqlite3.SQLITE_IOERR else ""
        raise StorageError(f"{name}: {_line(error)}; nothing was changed{advice}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise TranscriptDamaged(
            f"{name} is damaged ({_line(error)}): restore it from a backup or move it away"
        ) from error


def _line(error: Exception) -> str:
    """SQLite quotes a damaged schema with its line breaks."""
    return " ".join(str(error).split())[:200]


def mend_index(db: sqlite3.Connection, conversation_id: int) -> None:
    """Makes SQLite's index anew where it does not show just the conversation's rows: by it, some would stay."""
    query = "SELECT id FROM turns{} WHERE conversation = ? ORDER BY id"
    shown = db.execute(query.format(""), (conversation_id,)).fetchall()
    if shown != db.execute(query.format(" NOT INDEXED"), (conversation_id,)).fetchall():
        db.execute("REINDEX turns_of")
