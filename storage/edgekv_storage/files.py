"""Opening, reading and writing private files: 0600, ordinary files only (no link, no pipe), all bytes or an error.

Knows the disk it was given; not the format. A SegmentFile is closed when its last user lets go of it, so a
reader can never meet a descriptor number that was closed and given to another file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING

from edgekv_storage.io.disk import NO_ROOM, OS_DISK, Buffer, NotAFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekv_storage.io.disk import Disk

__all__ = [
    "NO_ROOM",
    "Buffer",
    "NotAFile",
    "SegmentFile",
    "open_private",
    "read_private",
    "sync_directory",
    "write_all",
]
_IOV_MAX = 1024


def open_private(path: Path, flags: int) -> int:
    """File descriptor of an ordinary file, created 0600; never waits for another process, as a pipe would.

    Raises OSError: NotAFile for a directory, a pipe or a device, ELOOP for a symbolic link.
    """
    return OS_DISK.open(path, flags)


def read_private(path: Path, most_bytes: int) -> bytes:
    """All of a small ordinary file. Raises OSError: as `open_private`, EFBIG where it is longer."""
    fd = open_private(path, os.O_RDONLY)
    try:
        parts: list[bytes] = []
        left = most_bytes + 1
        while left and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    if not left:
        raise OSError(errno.EFBIG, f"it is longer than {most_bytes:,} bytes", str(path))
    return b"".join(parts)


def sync_directory(path: Path) -> None:
    """Makes created and removed names durable; a file system that cannot do this is tolerated."""
    OS_DISK.sync_directory(path)


def write_all(disk: Disk, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Writes every byte at `offset` and returns their number. Raises OSError; a part may then be written."""
    start = offset
    pending = [memoryview(b).cast("B") for b in buffers if len(b)]
    first = 0
    while first < len(pending):
        batch = pending[first : first + _IOV_MAX]
        try:
            written = disk.pwritev(fd, batch, offset)
        except InterruptedError:
            continue
        if written <= 0:
            raise OSError(errno.EIO, "the drive accepted no bytes")
        offset += written
        while first < len(pending) and written >= len(pending[first]):
            written -= len(pending[first])
            first += 1
        if written:
            pending[first] = pending[first][written:]
    return offset - start


class SegmentFile:
    """One file for reading: a buffered descriptor, and a direct one where the file system allows it."""

    __slots__ = ("__weakref__", "_buffered", "_direct", "_lock", "disk", "path", "use_direct")

    def __init__(self, path: Path, *, use_direct: bool, disk: Disk = OS_DISK) -> None:
        self.path = path
        self.disk = disk
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
                    self._buffered = self.disk.open_reading(self.path, direct=False)
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
            return self.disk.open_reading(self.path, direct=True)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.use_direct = False
            return -1

    def read(self, num_bytes: int, offset: int) -> bytes:
        """Through the page cache; fewer bytes only at the end of the file. Raises OSError."""
        fd = self.buffered
        parts = []
        while num_bytes > 0:
            try:
                part = self.disk.pread(fd, num_bytes, offset)
            except InterruptedError:
                continue
            if not part:
                break
            parts.append(part)
            offset += len(part)
            num_bytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def num_bytes(self) -> int:
        """Size of the file now. Raises OSError."""
        return self.disk.size(self.buffered)

    def hold(self) -> None:
        """Opens what is not open yet: from now on it can be read although its name is removed."""
        with contextlib.suppress(OSError):
            _ = self.buffered, self.direct

    def __del__(self) -> None:
        for fd in (self._buffered, self._direct):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    self.disk.close(fd)
