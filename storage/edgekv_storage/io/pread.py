"""Reads by a pool of threads in `preadv`, which lets go of the GIL while it waits.

Knows threads and their queue; how one read is made is in blocking.py. Sixteen threads reach about what
io_uring does at 256 KiB, and work everywhere.
"""

from __future__ import annotations

import errno
import heapq
import logging
import mmap
import os
import threading
from typing import TYPE_CHECKING

from edgekv_storage.errors import StoreClosed
from edgekv_storage.files import SegmentFile
from edgekv_storage.io.blocking import read_job
from edgekv_storage.io.buffers import POOL
from edgekv_storage.segments.format import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekv_storage.io.protocol import ReadJob

_log = logging.getLogger(__name__)


NUM_THREADS = 16
_FIRST = -1


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
        self.use_direct = use_direct
        self._queue: list[tuple[int, int, ReadJob]] = []
        self._count = 0
        self._idle = 0
        self._is_closed = False
        self._process = os.getpid()
        self._ready = threading.Condition()
        self._max_threads = num_threads
        self._threads: list[threading.Thread] = []

    @property
    def name(self) -> str:
        """What `doctor` shows."""
        how = "O_DIRECT" if self.use_direct else "page cache"
        return f"pread ({self._max_threads} threads, {how})"

    def submit(self, jobs: Sequence[ReadJob], priority: int) -> None:
        """Queues jobs and returns. Raises StoreClosed."""
        with self._ready:
            if self._is_closed or self._process != os.getpid():
                raise StoreClosed("the store is closed")
            wanted = len(self._queue) + len(jobs) - self._idle
            refusal = self._start_threads(min(wanted, self._max_threads - len(self._threads)))
            if refusal is None:
                for job in jobs:
                    heapq.heappush(self._queue, (priority, self._count, job))
                    self._count += 1
                self._ready.notify(len(jobs))
        if refusal is not None:
            for job in jobs:
                job.finish(OSError(errno.EAGAIN, refusal))

    def run(self, jobs: Sequence[ReadJob]) -> None:
        """Carries out jobs whose caller waits for them: the first in its thread, the others by threads.

        Raises StoreClosed.
        """
        self.submit(jobs[1:], _FIRST)
        for job in jobs[:1]:
            self._carry_out(job)

    def _start_threads(self, count: int) -> str | None:
        """Why there is none at all; with some, the others are done without."""
        for _ in range(count):
            thread = threading.Thread(target=self._run, name="edgekv-read", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system's limit on threads
                return None if self._threads else str(error)
            self._threads.append(thread)
        return None

    def close(self) -> None:
        """Finishes what has started, fails what has not, and waits for both."""
        if self._process != os.getpid():
            return  # a child of fork has none of the threads
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
            self._carry_out(job)
            del job  # the last reference may close the file

    def _carry_out(self, job: ReadJob) -> None:
        error: OSError | None = None
        try:
            buffers = job.begin()
            if buffers is None:
                error = OSError(errno.ECANCELED, "no longer wanted")
            else:
                read_job(job, buffers, POOL, use_direct=self.use_direct)
        except OSError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001  the thread's edge: a dead thread would hang every waiter
            _log.exception("a read failed on our side")
            error = OSError(errno.EAGAIN, f"{failure}")  # ours: the drive lost nothing
        job.finish(error)
