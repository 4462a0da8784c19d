"""Every file operation the store makes on segments, behind one protocol: the real disk here, a simulated one
in io/faulty.py.

Knows the operating system; not the format. LOCK, meta.json and the transcripts are not behind it: what they
promise rests on SQLite and on rename, and is tested with real processes.
"""
# ruff: noqa: D102  (the protocol says what each method does)

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sqlite3
import stat
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Buffer = bytes | bytearray | memoryview
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE: blocks are reserved, the file's size stays what was written
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY  # a planted pipe must not block
_libc = ctypes.CDLL(None, use_errno=True)


class NotAFile(OSError):
    """A folder, a pipe, a device where a file was expected."""


class Item(NamedTuple):
    """A name in a directory; `num_bytes` and `used_ns` are those of the file itself, links not followed."""

    name: str
    is_file: bool
    num_bytes: int
    used_ns: int


class Room(NamedTuple):
    """Bytes of a file system: free to this user, and in all."""

    free_bytes: int
    total_bytes: int


class Disk(Protocol):
    """All methods raise OSError. Descriptors are only the disk's own: `is_real` says whether the kernel's."""

    is_real: bool

    def open(self, path: Path, flags: int) -> int:
        """Ordinary files only, without ever waiting for one; no symbolic link (ELOOP). Created ones are 0600."""
        ...

    def open_reading(self, path: Path, *, direct: bool) -> int:
        """For reading: aligned and past the page cache (EINVAL where that is refused), or without read-ahead."""
        ...

    def close(self, fd: int) -> None:
        """Lets go of a descriptor."""
        ...

    def dup(self, fd: int) -> int:
        """Another descriptor of the same open file."""
        ...

    def pread(self, fd: int, num_bytes: int, offset: int) -> bytes:
        """At most `num_bytes`; none at the end of the file."""
        ...

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fills buffers in order; how many bytes."""
        ...

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """How many bytes were taken, perhaps not all."""
        ...

    def reserve(self, fd: int, offset: int, num_bytes: int) -> bool:
        """Blocks behind the file's end, its size unchanged; False where the file system cannot.

        An OSError (ENOSPC) comes early, before anything was written. `os.posix_fallocate` would grow the
        file, and a scan after a crash could no longer tell written bytes from reserved ones.
        """
        ...

    def truncate(self, fd: int, num_bytes: int) -> None:
        """Cuts the file, and gives back what was reserved behind its end."""
        ...

    def sync(self, fd: int) -> None:
        """Waits until the file's bytes are on the drive. After an error they may be gone: never ask again."""
        ...

    def start_sync(self, fd: int, offset: int, num_bytes: int) -> None:
        """Sends bytes on their way to the drive and does not wait, so that `sync` has less to wait for.

        Promises nothing and reports nothing: an error is `sync`'s to tell.
        """
        ...

    def size(self, fd: int) -> int:
        """Bytes of the file."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Makes created and removed names durable; a file system that cannot do this is tolerated."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Moves a file within the data directory."""
        ...

    def unlink(self, path: Path) -> None:
        """Removes a name; fine where there is none."""
        ...

    def make_directory(self, path: Path) -> None:
        """0700; fine where it exists."""
        ...

    def is_directory(self, path: Path) -> bool:
        """Whether there is a directory of that name itself, not a link to one."""
        ...

    def items(self, path: Path) -> list[Item]:
        """What lies in a directory, by name; empty where there is no such directory."""
        ...

    def set_time(self, path: Path, used_ns: int) -> None:
        """Keeps the time of the last use; a failure does not matter and is not told."""
        ...

    def room(self, path: Path) -> Room:
        """Of the file system that holds `path`."""
        ...

    def database(self, path: Path) -> sqlite3.Connection:
        """An SQLite file, created private before SQLite opens it. Raises sqlite3.Error too."""
        ...

    def remove_database(self, path: Path) -> None:
        """Deletes an SQLite file and what SQLite puts beside it."""
        ...


class OsDisk(Disk):
    """The operating system's files."""

    is_real = True

    def open(self, path: Path, flags: int) -> int:
        fd = os.open(path, flags | _FLAGS, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotAFile(errno.EINVAL, "it is not an ordinary file", str(path))
        os.set_blocking(fd, True)  # io_uring may answer EAGAIN instead of waiting for the drive
        return fd

    def open_reading(self, path: Path, *, direct: bool) -> int:
        fd = self.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        if not direct:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def dup(self, fd: int) -> int:
        return os.dup(fd)

    def pread(self, fd: int, num_bytes: int, offset: int) -> bytes:
        return os.pread(fd, num_bytes, offset)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def reserve(self, fd: int, offset: int, num_bytes: int) -> bool:
        result = _libc.fallocate(fd, _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(num_bytes))
        if result == 0:
            return True
        code = ctypes.get_errno()
        if code in NO_ROOM:
            raise OSError(code, os.strerror(code))
        return False

    def truncate(self, fd: int, num_bytes: int) -> None:
        os.ftruncate(fd, num_bytes)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def start_sync(self, fd: int, offset: int, num_bytes: int) -> None:
        _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(num_bytes), _START_WRITING)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)

    def is_directory(self, path: Path) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except OSError:
            return False

    def items(self, path: Path) -> list[Item]:
        found = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    is_file = entry.is_file(follow_symlinks=False)
                    found.append(Item(entry.name, is_file, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            return []
        return sorted(found)

    def set_time(self, path: Path, used_ns: int) -> None:
        with contextlib.suppress(OSError, OverflowError):
            os.utime(path, ns=(used_ns, used_ns), follow_symlinks=False)

    def room(self, path: Path) -> Room:
        status = os.statvfs(path)
        return Room(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)

    def database(self, path: Path) -> sqlite3.Connection:
        os.close(self.open(path, os.O_RDWR | os.O_CREAT))
        return sqlite3.connect(path, check_same_thread=False, isolation_level=None)

    def remove_database(self, path: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


OS_DISK = OsDisk()
