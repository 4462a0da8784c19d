"""A master key in a private file: 0600, one line, tied to one keys.db and one generation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgekv_storage.errors import KeyUnavailable, WrongCode
from edgekv_storage.files import NotAFile, open_private, sync_directory
from edgekv_storage.keychain.recovery import decode_recovery, encode_recovery
from edgekv_storage.keychain.unlocking import RECOVER

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv_storage.keychain.unlocking import Place, Unlocking

_MOST_FILE_BYTES = 4096
_FILE_WORD = "edgekv-master-key"


def new_path(place: Place, unlocking: Unlocking) -> Path:
    """Where a new key goes: as asked, else beside keys.db."""
    if unlocking.key_file is None:
        return place.directory / f"master-{place.generation}.key"
    path = unlocking.key_file.absolute()
    # A later generation gets a name of its own: the old file is needed until the new one is in use.
    return path if not path.exists() else path.with_name(f"{path.name}.{place.generation}")


def write(path: Path, place: Place, master: bytes) -> None:
    """A new file, durable when this returns. Raises KeyUnavailable."""
    line = f"{_FILE_WORD} {place.account} {encode_recovery(master)}\n".encode()
    try:
        fd = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(fd, line)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise KeyUnavailable(f"{path} exists already and is not this key; move it away") from error
    except OSError as error:
        raise KeyUnavailable(f"the key file {path} cannot be written: {error.strerror}") from error


def read(path: Path, place: Place) -> bytes:
    """The master key. Raises KeyUnavailable for a missing, foreign, damaged or open file."""
    try:
        fd = open_private(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise KeyUnavailable(
            f"the key file {path} is missing: put it back (--key-file names another place), {RECOVER}"
        ) from error
    except NotAFile as error:
        raise KeyUnavailable(f"{path} is not an ordinary file; put the key file back, {RECOVER}") from error
    except OSError as error:
        raise KeyUnavailable(f"the key file {path} cannot be read: {error.strerror}") from error
    try:
        if os.fstat(fd).st_mode & 0o077:
            raise KeyUnavailable(
                f"the key file {path} can be read by other users: `chmod 600` it, then replace the key with "
                "`edgekv key rotate`"
            )
        words = os.pread(fd, _MOST_FILE_BYTES, 0).decode("ascii", "replace").split()
    except OSError as error:
        raise KeyUnavailable(f"the key file {path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(words) != 3 or words[0] != _FILE_WORD:
        raise KeyUnavailable(f"{path} is damaged or no edgekv key file: restore it from a backup, {RECOVER}")
    if words[1] != place.account:
        raise KeyUnavailable(
            f"{path} belongs to another data directory, or to an earlier key of this one: put the right one "
            f"there (--key-file names another place), {RECOVER}"
        )
    try:
        return decode_recovery(words[2])
    except WrongCode as error:
        raise KeyUnavailable(f"the key in {path} is damaged: restore it from a backup, {RECOVER}") from error


def remove(path: Path, place: Place) -> None:
    """Only a file of exactly this place: a name in a planted keys.db must not delete somebody's file."""
    try:
        fd = open_private(path, os.O_RDWR)
    except (FileNotFoundError, NotAFile):
        return
    try:
        data = os.pread(fd, _MOST_FILE_BYTES, 0)
        ours = f"{_FILE_WORD} {place.account} ".encode()
        if not data.startswith(ours) and not ours.startswith(data) and data.strip(b"\0"):
            return
        os.pwrite(fd, bytes(len(data)), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    path.unlink(missing_ok=True)
    sync_directory(path.parent)
