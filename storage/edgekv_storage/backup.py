"""A copy of a data directory that can be put back: text and keys always, KV where it is asked for.

Text and keys may be copied while another process writes them (SQLite's own backup); KV only with the lock. A
copy is complete when its meta.json is there: it is written last. Knows file names, opens no key.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.datadir import DataDir
from edgekv_storage.errors import KeysDamaged, StorageError, TranscriptDamaged, UnknownFormat, Unwritable
from edgekv_storage.files import NotAFile, open_private, sync_directory
from edgekv_storage.keychain.keychain import look
from edgekv_storage.looking import COPY_IT, look_at_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COPY_BYTES = 1 << 20
# Keys behind text: each conversation in the copied text then has its key in the copied keys.
_DATABASES = ("transcripts.db", "keys.db")
_PLAIN = ("edgekv.toml",)
_LAST = "meta.json"
_BESIDE = frozenset({"models", "edgekv.log"})  # in a data directory that has no data yet


class Copied(NamedTuple):
    """`protection`: what opens the keys of the copy (keyring, passphrase, file), None if nothing is encrypted."""

    num_files: int
    num_bytes: int
    protection: str | None
    notices: list[str]


def back_up(source: Path, target: Path, *, with_kv: bool = False) -> Copied:
    """Copies the data directory `source` into `target`, a new or empty folder.

    `with_kv` also copies the segments, which needs the directory for itself (Locked). Raises Unwritable,
    UnknownFormat, KeysDamaged, TranscriptDamaged; what was copied so far is removed then.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_errors(source, target))
        _check_source(source)
        if with_kv:
            stack.enter_context(DataDir.open(source))
        with _new_folder(target):
            for name in _DATABASES:
                if (source / name).exists():
                    _copy_database(source / name, target / name)
            info = look(target)
            notices = []
            names = [name for name in _PLAIN if (source / name).exists()]
            if info is not None and info.key_file is not None:
                if info.key_file.parent == target:
                    names.append(info.key_file.name)
                else:
                    notices.append(
                        f"the key file {info.key_file} lies elsewhere and is not part of the backup"
                    )
            if with_kv:
                names += sorted(path.name for path in source.glob("seg-*.kv"))
            _copy_files(source, target, names)
        return _copied(target, None if info is None else info.kind, notices)


def restore(source: Path, target: Path) -> Copied:
    """Puts the backup `source` into `target`, a new or empty folder; nothing is ever overwritten.

    Model files and a log may lie there already: they are no data, and stay. Raises Unwritable, UnknownFormat
    (no complete backup), KeysDamaged.
    """
    with _errors(source, target):
        _check_source(source)
        info = look(source)
        with _new_folder(target, _BESIDE):
            names = [name for name in (*_DATABASES, *_PLAIN) if (source / name).exists()]
            for pattern in ("master-*.key", "seg-*.kv"):
                names += sorted(path.name for path in source.glob(pattern))
            _copy_files(source, target, names)
        return _copied(target, None if info is None else info.kind, [])


def _check_source(source: Path) -> None:
    if not (source / _LAST).exists():
        raise UnknownFormat(
            f"{source} is no data directory and no complete backup of one (it has no {_LAST})"
        )
    DataDir.open_read_only(source).close()


@contextlib.contextmanager
def _new_folder(target: Path, beside: frozenset[str] = frozenset()) -> Iterator[None]:
    """Made 0700 where it is not there; emptied again, but for `beside`, if what is done in it fails."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and _names(target) <= beside)):
        raise Unwritable(f"{target} is there and not an empty folder: choose another, nothing is overwritten")
    is_new = not target.exists()
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.chmod(0o700)
    try:
        yield
    except BaseException:
        if is_new:
            shutil.rmtree(target, ignore_errors=True)
        for name in (_names(target) if target.is_dir() else set()) - beside:
            with contextlib.suppress(OSError):
                (target / name).unlink()
        raise


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy although somebody may be writing; checked, and without a journal of its own."""
    damaged = KeysDamaged if source.name == "keys.db" else TranscriptDamaged
    try:
        verdict = look_at_whole(source, lambda old: _copy_rows(old, target))
    except NotAFile as error:
        raise damaged(f"{source} is not an ordinary file: put the real one back") from error
    except sqlite3.OperationalError as error:
        raise Unwritable(f"cannot copy {source}: {error}; {COPY_IT}") from error
    except sqlite3.DatabaseError as error:
        raise damaged(f"{source} is damaged ({error}): it cannot be copied") from error
    if verdict != "ok":
        raise damaged(f"{source} is damaged ({verdict}): it cannot be copied")
    fd = open_private(target, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy_rows(old: sqlite3.Connection, target: Path) -> str:
    """SQLite's opinion of the copy. A copy that was made before, and dropped, is in nobody's way."""
    target.unlink(missing_ok=True)
    os.close(open_private(target, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    with contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode = DELETE")
        (verdict,) = new.execute("PRAGMA quick_check(1)").fetchone()
    return str(verdict)


def _copy_files(source: Path, target: Path, names: list[str]) -> None:
    for name in (*names, _LAST):  # meta.json says that all others are there
        if name == _LAST:
            sync_directory(target)
        _copy_file(source / name, target / name)
    sync_directory(target)


def _copy_file(source: Path, target: Path) -> None:
    """Ordinary files only, never through a link, 0600, on the drive when this returns."""
    try:
        old = open_private(source, os.O_RDONLY)
    except NotAFile as error:
        raise UnknownFormat(f"{source} is not an ordinary file: it was not copied") from error
    try:
        new = open_private(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            while data := os.read(old, _COPY_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(new, view) :]
            os.fsync(new)
        finally:
            os.close(new)
    finally:
        os.close(old)


def _copied(target: Path, protection: str | None, notices: list[str]) -> Copied:
    sizes = [(target / name).stat().st_size for name in _names(target) - _BESIDE]
    return Copied(len(sizes), sum(sizes), protection, notices)


@contextlib.contextmanager
def _errors(source: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise Unwritable(
            f"cannot copy {source} to {target}: {error.strerror}; nothing was kept of it"
        ) from error
