"""Reads by io_uring: one thread keeps the drive's queue full and verifies what has landed.

Knows jobs, priorities, refusals and retries; the ring itself is in ring.py. The thread starts with the first
job. A ring that cannot be had leaves everything to `PreadReader`.

One thread does it all: handing a read over costs two switches of threads, decryption goes one at a time anyway,
and beside a thread that is busy with Python each wait for the GIL costs 5 ms, however much is done after it.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from edgekv_storage.errors import StoreClosed
from edgekv_storage.io.flights import Flight, begin, land
from edgekv_storage.io.pread import PreadReader
from edgekv_storage.io.ring import Prepared, Ring, RingUnusable
from edgekv_storage.io.waiting import WaitingReads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekv_storage.io.protocol import ReadJob

_log = logging.getLogger(__name__)
DEPTH = 32
_AHEAD = 4  # reads prepared beyond those in flight: the drive waits for Python a little less
_MAX_BYTES = (
    16 << 20
)  # begun and not finished: more gains nothing, and encrypted leaves hold memory meanwhile
_BUSY_SECONDS = 0.001
_FIRST = -1


class UringReader:
    """`use_direct=False` reads through the page cache; `notify` is told, once, if the ring cannot be had."""

    def __init__(
        self,
        depth: int = DEPTH,
        *,
        use_direct: bool = True,
        notify: Callable[[str], None] = lambda _message: None,
        make_ring: Callable[[int], Ring[Flight]] = Ring,
    ) -> None:
        self._depth = depth
        self.use_direct = use_direct
        self._notify = notify
        self._make_ring = make_ring
        self._lock = threading.Lock()
        self._queue: list[tuple[int, int, ReadJob]] = []
        self._count = 0
        self._is_closed = False
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._ring: Ring[Flight] | None = None
        self._fallback: PreadReader | None = None
        self._staged: deque[Prepared[Flight]] = deque()
        self._landed: deque[tuple[Flight, int | OSError]] = deque()
        self._begun_bytes = 0
        self._waiting = WaitingReads(use_direct=use_direct, make_ring=make_ring)

    @property
    def name(self) -> str:
        """What `doctor` shows."""
        if self._fallback is not None:
            return self._fallback.name
        return f"io_uring ({self._depth} in flight, {'O_DIRECT' if self.use_direct else 'page cache'})"

    def submit(self, jobs: Sequence[ReadJob], priority: int) -> None:
        """Queues jobs and returns. Raises StoreClosed."""
        with self._lock:
            if self._is_closed or self._process != os.getpid():
                raise StoreClosed("the store is closed")
            fallback, refusal = self._fallback, None
            if fallback is None:
                refusal = self._start_or_wake()  # the thread waits for the lock before it looks
            if fallback is None and refusal is None:
                for job in jobs:
                    heapq.heappush(self._queue, (priority, self._count, job))
                    self._count += 1
        if fallback is not None:
            fallback.submit(jobs, priority)
        if refusal is not None:
            for job in jobs:
                job.finish(OSError(errno.EAGAIN, refusal))

    def run(self, jobs: Sequence[ReadJob]) -> None:
        """Carries out jobs whose caller waits for them anyway, before all others. Raises StoreClosed."""
        if self._is_closed or self._process != os.getpid() or not self._waiting.run(jobs):
            self.submit(jobs, _FIRST)

    def close(self) -> None:
        """Finishes what has started, fails what has not, and waits for both."""
        if self._process != os.getpid():
            return  # a child of fork has neither the thread nor the right to the ring
        with self._lock:
            self._is_closed = True
            left, self._queue = self._queue, []
            if self._ring is not None:
                self._ring.wake()
        for _, _, job in left:
            job.finish(OSError(errno.ECANCELED, "the store was closed"))
        self._waiting.close()
        if self._thread is not None:
            self._thread.join()
        if self._fallback is not None:
            self._fallback.close()

    def _start_or_wake(self) -> str | None:
        """Why nobody will serve the queue, None when somebody does."""
        if self._ring is not None:
            self._ring.wake()
        elif self._thread is None:
            thread = threading.Thread(target=self._run, name="edgekv-uring", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system's limit on threads
                return str(error)
            self._thread = thread
        return None

    # From here on: the ring's thread

    def _run(self) -> None:
        try:
            ring = self._make_ring(self._depth)
        except RingUnusable as reason:
            self._fall_back(str(reason))
            return
        with self._lock:
            self._ring = ring
        try:
            self._serve(ring)
        except OSError as error:
            self._give_up(ring, f"io_uring failed ({error.strerror})")
        except Exception as error:  # noqa: BLE001  a dead thread would hang every waiter
            _log.exception("the ring's thread failed on our side")
            self._give_up(ring, f"io_uring failed ({error})")
        with self._lock:
            self._ring = None
        ring.close()

    def _serve(self, ring: Ring[Flight]) -> None:
        landed = self._landed
        while True:
            is_sent = self._start(ring)  # first of all: until then the drive may have nothing to do
            landed.extend(ring.completed())
            is_over = self._stage(ring)
            was_held = False
            if landed and not (self._staged and ring.room):
                was_held = self._begun_bytes >= _MAX_BYTES
                self._land(*landed.popleft())
            if landed or was_held or (is_sent and self._staged and ring.room):
                continue
            if is_over and not ring.in_flight:
                return
            if is_sent:
                ring.wait()
            else:
                time.sleep(_BUSY_SECONDS)

    def _start(self, ring: Ring[Flight]) -> bool:
        """Sends what is prepared and fits; False where the kernel is too busy to take it."""
        for _ in range(min(ring.room, len(self._staged))):
            ring.start(self._staged.popleft())
        return ring.send()

    def _stage(self, ring: Ring[Flight]) -> bool:
        """Prepares what fits and a little more; True when closed and nothing waits any more."""
        while (wanted := max(0, ring.room) + _AHEAD - len(self._staged)) > 0:
            if self._begun_bytes >= _MAX_BYTES:
                return False
            with self._lock:
                count = min(wanted, len(self._queue), _AHEAD)
                jobs = [heapq.heappop(self._queue)[2] for _ in range(count)]
                if not jobs:
                    return self._is_closed and not self._staged
            for job in jobs:
                self._begin(ring, job)
        return False

    def _give_up(self, ring: Ring[Flight], reason: str) -> None:
        """The ring takes no more reads: waits for those it has and leaves the rest to threads."""
        unsent = [*ring.take_unsent(), *(read.token for read in self._staged)]
        self._staged.clear()
        while ring.in_flight:
            self._landed.extend(ring.completed())  # first: their signal may have been taken already
            if ring.in_flight:
                ring.wait()
        self._fall_back(reason)
        while self._landed:
            self._land(*self._landed.popleft())
        for flight in unsent:
            self._land(flight, OSError(errno.EAGAIN, "not sent"))

    def _fall_back(self, reason: str) -> None:
        fallback = PreadReader(use_direct=self.use_direct)
        with self._lock:
            waiting, self._queue = sorted(self._queue), []
            self._fallback = fallback
        for priority, _, job in waiting:
            fallback.submit([job], priority)
        self._notify(f"{reason}: leaves are read by threads instead ({fallback.name})")

    def _begin(self, ring: Ring[Flight], job: ReadJob) -> None:
        read = begin(ring, job, use_direct=self.use_direct)
        if read is not None:
            self._begun_bytes += read.token.num_bytes
            self._staged.append(read)

    def _land(self, flight: Flight, result: int | OSError) -> None:
        land(flight, result, use_direct=self.use_direct)
        self._begun_bytes -= flight.num_bytes
