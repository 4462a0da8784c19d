"""Reads by a pool of threads in `preadv`, which lets go of the GIL while it waits.

Direct I/O goes straight into the caller's memory where file offset, addresses and lengths are page-aligned,
through a pooled aligned buffer where they are not, and through the page cache where the file system
refuses it or the bytes have not reached the drive. Sixteen threads reach about what io_uring does at 256 KiB.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import logging
import mmap
import os
import threading
from typing import TYPE_CHECKING

from edgekv_storage.errors import StoreClosed
from edgekv_storage.files import SegmentFile
from edgekv_storage.format import PAGE, round_up
from edgekv_storage.io.buffers import BufferPool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekv_storage.io.protocol import ReadJob

_log = logging.getLogger(__name__)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


NUM_THREADS = 16


def reader_name(*, use_direct: bool, num_threads: int = NUM_THREADS) -> str:
    """What `doctor` shows of a reader, made or not."""
    return f"pread ({num_threads} threads, {'O_DIRECT' if use_direct else 'page cache'})"


def reads_directly(path: Path) -> bool:
    """Whether direct reads of this file work; a file system may take the flag and refuse the read."""
    file = SegmentFile(path, use_direct=True)
    try:
        fd = file.direct
        if fd is not None:
            os.preadv(fd, [mmap.mmap(-1, PAGE)], 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return fd is not None


class PreadReader:
    """`use_direct=False` reads through the page cache only."""

    def __init__(self, num_threads: int = NUM_THREADS, *, use_direct: bool = True) -> None:
        self._use_direct = use_direct
        self._queue: list[tuple[int, int, ReadJob]] = []
        self._count = 0
        self._idle = 0
        self._is_closed = False
        self._ready = threading.Condition()
        self._max_threads = num_threads
        self._threads: list[threading.Thread] = []
        self._pool = BufferPool()

    @property
    def name(self) -> str:
        """What `doctor` shows."""
        return reader_name(use_direct=self._use_direct, num_threads=self._max_threads)

    def submit(self, jobs: Sequence[ReadJob], priority: int) -> None:
        """Queues jobs and returns. Raises StoreClosed."""
        with self._ready:
            if self._is_closed:
                raise StoreClosed("the store is closed")
            for job in jobs:
                heapq.heappush(self._queue, (priority, self._count, job))
                self._count += 1
            self._ready.notify(len(jobs))
            missing = min(len(self._queue) - self._idle, self._max_threads - len(self._threads))
            for _ in range(missing):
                thread = threading.Thread(target=self._run, name="edgekv-read", daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        """Finishes what has started, fails what has not, and waits for both."""
        with self._ready:
            self._is_closed = True
            left, self._queue = self._queue, []
            self._ready.notify_all()
        for _, _, job in left:
            job.finish(OSError(errno.ECANCELED, "the store was closed"))
        for thread in self._threads:
            thread.join()

    def _take(self) -> ReadJob | None:
        with self._ready:
            self._idle += 1
            while not self._queue and not self._is_closed:
                self._ready.wait()
            self._idle -= 1
            return heapq.heappop(self._queue)[2] if self._queue else None

    def _run(self) -> None:
        while (job := self._take()) is not None:
            error: OSError | None = None
            try:
                buffers = job.begin()
                if buffers is None:
                    error = OSError(errno.ECANCELED, "no longer wanted")
                else:
                    self._read(job, buffers)
            except OSError as failure:
                error = failure
            except Exception as failure:  # noqa: BLE001  the thread's edge: a dead thread would hang every waiter
                _log.exception("a read failed on our side")
                error = OSError(errno.EIO, f"{failure}")
            job.finish(error)
            buffers = None
            del job  # the last reference may close the file

    def _read(self, job: ReadJob, buffers: list[memoryview]) -> None:
        fd = job.file.direct if self._use_direct and not job.buffered else None
        if fd is None:
            _read_into(job.file, buffers, job.offset)
            return
        try:
            if _is_aligned(job.offset, buffers):
                _read_direct(fd, job.file, buffers, job.offset)
            else:
                self._read_bounced(fd, job, buffers)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            job.file.use_direct = False  # opened with O_DIRECT, but refuses to read so
            _read_into(job.file, buffers, job.offset)

    def _read_bounced(self, fd: int, job: ReadJob, buffers: list[memoryview]) -> None:
        total = sum(len(b) for b in buffers)
        start = job.offset - job.offset % PAGE
        aligned = self._pool.take(round_up(job.offset + total - start))
        try:
            _read_direct(fd, job.file, [aligned], start)
            at = job.offset - start
            for buffer in buffers:
                buffer[:] = aligned[at : at + len(buffer)]
                at += len(buffer)
        finally:
            self._pool.give(aligned)


def _is_aligned(offset: int, buffers: list[memoryview]) -> bool:
    if offset % PAGE:
        return False
    return all(len(b) % PAGE == 0 and _address(b) % PAGE == 0 for b in buffers)


def _read_direct(fd: int, file: SegmentFile, buffers: list[memoryview], offset: int) -> None:
    """One direct read; what a short one leaves is read through the page cache, alignment being lost."""
    count = file.disk.preadv(fd, buffers, offset)
    if count < sum(len(b) for b in buffers):
        _read_into(file, _rest(buffers, count), offset + count)


def _read_into(file: SegmentFile, buffers: list[memoryview], offset: int) -> None:
    fd = file.buffered
    while buffers:
        count = file.disk.preadv(fd, buffers, offset)
        if count == 0:
            raise OSError(errno.EIO, "the file is shorter than its records")
        offset += count
        buffers = _rest(buffers, count)


def _rest(buffers: list[memoryview], count: int) -> list[memoryview]:
    for i, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[i + 1 :]]
        count -= len(buffer)
    return []
