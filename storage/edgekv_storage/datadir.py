"""The data directory: created private, of a known format, owned by one process at a time.

Knows LOCK and meta.json; not what else lies in the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from typing import TYPE_CHECKING, Self

from edgekv_storage.errors import Locked, StoreClosed, UnknownFormat, Unwritable
from edgekv_storage.files import NotAFile, open_private, read_private, sync_directory
from edgekv_storage.segments.format import FORMAT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

_ADVICE = "choose another directory with --data-dir"
_MOST_LOCK_BYTES, _MOST_META_BYTES = 64, 65536


class DataDir:
    """A data directory opened by this process.

    With the lock held (`open`) it may be written. `open_read_only` takes no lock: for listing what another
    process is using.
    """

    def __init__(self, path: Path, lock_fds: tuple[int, ...], directory_id: str, notices: list[str]) -> None:
        self.path = path
        self.directory_id = directory_id
        self.notices = notices
        self._lock_fds = lock_fds
        self._pid = os.getpid()

    @property
    def is_own_process(self) -> bool:
        """Whether it was opened in this process, not before a fork."""
        return os.getpid() == self._pid

    def require_own_process(self) -> None:
        """Raises StoreClosed in a child made by fork: its writes would be the parent's, nonces and all."""
        if not self.is_own_process:
            raise StoreClosed(f"{self.path} was opened by process {self._pid}: open it again in this one")

    @property
    def is_writable(self) -> bool:
        """Whether this process holds the lock."""
        return bool(self._lock_fds)

    def require_writable(self) -> None:
        """Raises Unwritable without the lock."""
        if not self.is_writable:
            raise Unwritable(f"{self.path} was opened for reading only: its lock is another process's")

    @classmethod
    def open(cls, path: Path) -> DataDir:
        """Creates the directory where needed. Raises Locked, UnknownFormat, Unwritable."""
        try:
            notices = _make_private(path)
            fds = _lock(path)
        except OSError as error:
            raise Unwritable(f"cannot use {path}: {error.strerror}; {_ADVICE}") from error
        try:
            directory_id = _read_meta(path) or _write_meta(path)
        except BaseException as error:
            _close(fds)
            if isinstance(error, OSError):
                raise Unwritable(f"cannot write to {path}: {error.strerror}; {_ADVICE}") from error
            raise
        return cls(path, fds, directory_id, notices)

    @classmethod
    def open_read_only(cls, path: Path) -> DataDir:
        """No lock, nothing created. Raises UnknownFormat, Unwritable where there is no such directory."""
        try:
            return cls(path, (), _read_meta(path) or "", [])
        except OSError as error:
            raise Unwritable(f"cannot read {path}: {error.strerror}; {_ADVICE}") from error

    @staticmethod
    def owner(path: Path) -> int | None:
        """Number of the process that has the directory in use, None where none is seen to.

        Only looks, takes no lock and writes nothing: whose number LOCK holds, and whether that process still
        has LOCK open. Where that cannot be seen (another user's process), a living one counts as the owner.
        """
        lock = path / "LOCK"
        try:
            number = read_private(lock, _MOST_LOCK_BYTES).decode("ascii").strip()
            inode = lock.lstat()
        except (OSError, UnicodeDecodeError):
            return None
        if not number.isdigit():
            return None
        try:
            for fd in os.scandir(f"/proc/{number}/fd"):
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(fd.path), inode):  # noqa: PTH116  a link, followed
                        return int(number)
        except PermissionError:
            return int(number)
        except OSError:
            return None
        return None

    def close(self) -> None:
        """Gives the lock back; harmless when called again."""
        fds, self._lock_fds = self._lock_fds, ()
        _close(fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_private(path: Path) -> list[str]:
    """Creates the directory 0700; closes an existing one of ours to others, says so of a foreign one."""
    if not path.exists():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.is_dir():
        raise Unwritable(f"{path} is not a directory; {_ADVICE}")
    if not path.stat().st_mode & 0o077:
        return []
    if (path / "meta.json").exists() or not any(path.iterdir()):
        path.chmod(0o700)
        return []
    return [f"{path} can be read by other users of this machine; chmod 700 closes it"]


def _lock(path: Path) -> tuple[int, ...]:
    """Descriptors that hold the lock. `flock`, because `lockf` would let this process in twice.

    The folder is locked too, where the file system can: somebody may remove LOCK while it is in use.
    """
    fd = open_private(path / "LOCK", os.O_RDWR | os.O_CREAT)
    fds = [fd]
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            fcntl.flock(fds[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
    except BlockingIOError as error:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        _close(fds)
        by = f"process {owner}" if owner.isdigit() else "another process"
        raise Locked(f"{path} is in use by {by}; end it to use the disk, or go on in memory only") from error
    except OSError:
        _close(fds)
        raise
    with contextlib.suppress(OSError):  # the number is a courtesy; a full disk must not cost the lock
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return tuple(fds)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _read_meta(path: Path) -> str | None:
    """The directory's id, None where there is no meta.json. Raises UnknownFormat, OSError."""
    try:
        meta = json.loads(read_private(path / "meta.json", _MOST_META_BYTES))
        found, directory_id = meta["format"], str(meta["uuid"])
        if found == FORMAT:  # what others call their directories is not ours to judge
            directory_id = str(uuid.UUID(directory_id))
    except FileNotFoundError:
        if not path.is_dir():
            raise
        return None
    except (NotAFile, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnknownFormat(
            f"{path / 'meta.json'} is damaged or not edgekv's; move it away (the data beside it stays), "
            f"or {_ADVICE}"
        ) from error
    if isinstance(found, int) and 0 < found < FORMAT:
        raise UnknownFormat(
            f"{path} was written by an earlier edgekv (format {found}, this version reads {FORMAT}): nothing "
            f"was touched; move it away, or {_ADVICE}"
        )
    if found != FORMAT:
        raise UnknownFormat(
            f"{path} has format {found}, this version reads {FORMAT}; nothing was touched: update edgekv, "
            f"or {_ADVICE}"
        )
    return directory_id


def _write_meta(path: Path) -> str:
    """Written beside and renamed, so that a crash leaves the whole file or none."""
    directory_id = str(uuid.uuid4())
    temporary = path / "meta.json.new"
    temporary.unlink(missing_ok=True)
    fd = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(fd, json.dumps({"format": FORMAT, "uuid": directory_id}).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path / "meta.json")
    sync_directory(path)
    return directory_id
