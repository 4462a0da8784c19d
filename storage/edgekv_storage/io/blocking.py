"""One read, start to end, in the calling thread: direct where it can be, else through the page cache.

Knows alignment, short reads and refusals; not queues nor threads. Every reader ends here when the drive or the
file system does something unusual.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING

from edgekv_storage.segments.format import PAGE, round_up

if TYPE_CHECKING:
    from edgekv_storage.files import SegmentFile
    from edgekv_storage.io.buffers import BufferPool
    from edgekv_storage.io.protocol import ReadJob


def read_job(job: ReadJob, buffers: list[memoryview], pool: BufferPool, *, use_direct: bool) -> None:
    """Fills `buffers`. Raises OSError; EIO where the file is shorter than asked for."""
    fd = job.file.direct if use_direct and not job.buffered else None
    if fd is None:
        read_all(job.file, buffers, job.offset)
        return
    try:
        if is_aligned(job.offset, buffers) and all(address(b) % PAGE == 0 for b in buffers):
            settle(job, buffers, _preadv(job.file, fd, buffers, job.offset), None)
        else:
            _read_bounced(fd, job, buffers, pool)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        job.file.use_direct = False  # opened with O_DIRECT, but refuses to read so
        read_all(job.file, buffers, job.offset)


def _read_bounced(fd: int, job: ReadJob, buffers: list[memoryview], pool: BufferPool) -> None:
    start, num_bytes = direct_range(job.offset, buffers)
    bounce = pool.take(num_bytes)
    try:
        settle(job, buffers, _preadv(job.file, fd, [bounce], start), bounce)
    finally:
        pool.give(bounce)


def direct_range(offset: int, buffers: list[memoryview]) -> tuple[int, int]:
    """First byte and length of the whole pages around a read."""
    start = offset - offset % PAGE
    return start, round_up(offset + sum(map(len, buffers)) - start)


def is_aligned(offset: int, buffers: list[memoryview]) -> bool:
    """Whether a direct read can probably land in `buffers` themselves.

    Only the first address is looked at, since that costs more than all the rest together: leaves lie in arenas,
    and a kernel that minds the address of a later one refuses the read.
    """
    if offset % PAGE or not buffers:
        return False
    return not any(len(b) % PAGE for b in buffers) and address(buffers[0]) % PAGE == 0


def address(buffer: memoryview) -> int:
    """Where writable memory begins. Raises TypeError for read-only memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def settle(job: ReadJob, buffers: list[memoryview], count: int, bounce: memoryview | None) -> None:
    """After a direct read of `count` bytes: out of the bounce buffer, the rest through the page cache.

    A direct read that ended early cannot go on where it stopped: the alignment is lost. Raises OSError.
    """
    if bounce is not None:
        at = job.offset % PAGE
        count = max(0, count - at)
        left = count
        for buffer in buffers:
            part = min(left, len(buffer))
            buffer[:part] = bounce[at : at + part]
            at += part
            left -= part
    if count < sum(map(len, buffers)):
        read_all(job.file, rest_of(buffers, count), job.offset + count)


def read_all(file: SegmentFile, buffers: list[memoryview], offset: int) -> None:
    """Fills `buffers` from `offset` on, through the page cache. Raises OSError; EIO where the file ends before."""
    fd = file.buffered
    while buffers:
        count = _preadv(file, fd, buffers, offset)
        if count == 0:
            raise OSError(errno.EIO, "the file is shorter than its records")
        offset += count
        buffers = rest_of(buffers, count)


def _preadv(file: SegmentFile, fd: int, buffers: list[memoryview], offset: int) -> int:
    while True:
        try:
            return file.disk.preadv(fd, buffers, offset)
        except InterruptedError:
            continue


def rest_of(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is not filled yet after `count` bytes."""
    for i, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[i + 1 :]]
        count -= len(buffer)
    return []
