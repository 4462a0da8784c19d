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
from edgekv_storage.files import open_private, sync_directory
from edgekv_storage.segments.format import FORMAT

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_ADVICE = "choose another directory with --data-dir"


class DataDir:
    """A data directory opened by this process.

    With the lock held (`open`) it may be written. `open_read_only` takes no lock: for listing what another
    process is using.
    """

    def __init__(self, path: Path, lock_fd: int | None, directory_id: str, notices: list[str]) -> None:
        self.path = path
        self.directory_id = directory_id
        self.notices = notices
        self._lock_fd = lock_fd
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
        return self._lock_fd is not None

    def require_writable(self) -> None:
        """Raises Unwritable without the lock."""
        if not self.is_writable:
            raise Unwritable(f"{self.path} was opened for reading only: its lock is another process's")

    @classmethod
    def open(cls, path: Path) -> DataDir:
        """Creates the directory where needed. Raises Locked, UnknownFormat, Unwritable."""
        try:
            notices = _make_private(path)
            fd = _lock(path)
        except OSError as error:
            raise Unwritable(f"cannot use {path}: {error.strerror}; {_ADVICE}") from error
        try:
            directory_id = _read_meta(path) or _write_meta(path)
        except OSError as error:
            os.close(fd)
            raise Unwritable(f"cannot write to {path}: {error.strerror}; {_ADVICE}") from error
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, directory_id, notices)

    @classmethod
    def open_read_only(cls, path: Path) -> DataDir:
        """No lock, nothing created. Raises UnknownFormat, Unwritable where there is no such directory."""
        try:
            return cls(path, None, _read_meta(path) or "", [])
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
            number = lock.read_text("ascii").strip()
            inode = lock.stat()
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
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            os.close(fd)

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


def _lock(path: Path) -> int:
    """Descriptor that holds the lock. `flock`, because `lockf` would let this process in twice."""
    fd = open_private(path / "LOCK", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        by = f"process {owner}" if owner.isdigit() else "another process"
        raise Locked(f"{path} is in use by {by}; end it to use the disk, or go on in memory only") from error
    except OSError:
        os.close(fd)
        raise
    with contextlib.suppress(OSError):  # the number is a courtesy; a full disk must not cost the lock
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _read_meta(path: Path) -> str | None:
    """The directory's id, None where there is no meta.json. Raises UnknownFormat, OSError."""
    try:
        fd = open_private(path / "meta.json", os.O_RDONLY)
    except FileNotFoundError:
        if not path.is_dir():
            raise
        return None
    try:
        data = os.read(fd, 65536)
    finally:
        os.close(fd)
    try:
        meta = json.loads(data)
        found, directory_id = meta["format"], str(meta["uuid"])
    except (ValueError, KeyError, TypeError) as error:
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
