"""Opening and writing private files: 0600, never through a symbolic link, all bytes or an error.

Knows the operating system; not the format. A SegmentFile is closed when its last user lets go of it, so a
reader can never meet a descriptor number that was closed and given to another file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Buffer = bytes | bytearray | memoryview
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_IOV_MAX = 1024
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE: blocks are reserved, the file's size stays what was written
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


def open_private(path: Path, flags: int) -> int:
    """File descriptor; created files are 0600. Raises OSError (ELOOP for a symbolic link)."""
    return os.open(path, flags | _FLAGS, 0o600)


def read_exactly(fd: int, num_bytes: int, offset: int) -> bytes:
    """Fewer bytes only at the end of the file."""
    parts = []
    while num_bytes > 0 and (part := os.pread(fd, num_bytes, offset)):
        parts.append(part)
        offset += len(part)
        num_bytes -= len(part)
    return b"".join(parts)


def write_all(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Writes every byte at `offset` and returns their number. Raises OSError; a part may then be written."""
    start = offset
    pending = [memoryview(b).cast("B") for b in buffers if len(b)]
    first = 0
    while first < len(pending):
        batch = pending[first : first + _IOV_MAX]
        written = os.pwritev(fd, batch, offset)
        if written <= 0:
            raise OSError(errno.EIO, "the drive accepted no bytes")
        offset += written
        while first < len(pending) and written >= len(pending[first]):
            written -= len(pending[first])
            first += 1
        if written:
            pending[first] = pending[first][written:]
    return offset - start


def sync_directory(path: Path) -> None:
    """Makes created and removed names durable; a file system that cannot do this is tolerated."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


_libc = ctypes.CDLL(None, use_errno=True)


def preallocate(fd: int, offset: int, num_bytes: int) -> bool:
    """Reserves blocks behind the file's end without growing it; False where the file system cannot.

    Raises OSError (ENOSPC early, before anything was written). `os.posix_fallocate` would grow the file, and
    a scan after a crash could no longer tell written bytes from reserved ones.
    """
    result = _libc.fallocate(fd, _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(num_bytes))
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_ROOM:
        raise OSError(code, os.strerror(code))
    return False


class SegmentFile:
    """One file for reading: a buffered descriptor, and a direct one where the file system allows it."""

    __slots__ = ("_buffered", "_direct", "_lock", "path", "use_direct")

    def __init__(self, path: Path, *, use_direct: bool) -> None:
        self.path = path
        self.use_direct = use_direct and hasattr(os, "O_DIRECT")
        self._lock = threading.Lock()
        self._buffered = -1
        self._direct = -1

    @property
    def buffered(self) -> int:
        """Descriptor through the page cache, read-ahead off. Raises OSError."""
        if self._buffered < 0:
            with self._lock:
                if self._buffered < 0:
                    fd = open_private(self.path, os.O_RDONLY)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                    self._buffered = fd
        return self._buffered

    @property
    def direct(self) -> int | None:
        """Descriptor for aligned direct reads, None where they do not work. Raises OSError."""
        if self._direct < 0 and self.use_direct:
            with self._lock:
                if self._direct < 0 and self.use_direct:
                    self._direct = self._open_direct()
        return self._direct if self.use_direct else None

    def _open_direct(self) -> int:
        try:
            return open_private(self.path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.use_direct = False
            return -1

    def __del__(self) -> None:
        for fd in (self._buffered, self._direct):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
