"""Reads by io_uring in the thread that waits for them: a few leaves that a step cannot go on without.

Handing them to the reader's thread costs two switches and the GIL's way there and back (a seventh of the time, for
one leaf as for eight). Knows one small ring and who may use it; whatever is unusual is left to the reader.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from edgekv_storage.io.flights import Flight, begin, land
from edgekv_storage.io.ring import Ring, RingUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekv_storage.io.protocol import ReadJob
    from edgekv_storage.io.ring import Prepared

DEPTH = 32
_BUSY_SECONDS = 0.0005


class WaitingReads:
    """One caller at a time; its ring is made when first needed."""

    def __init__(self, *, use_direct: bool, make_ring: Callable[[int], Ring[Flight]] = Ring) -> None:
        self._use_direct = use_direct
        self._make_ring = make_ring
        self._lock = threading.Lock()
        self._ring: Ring[Flight] | None = None
        self._is_usable = True

    def run(self, jobs: Sequence[ReadJob]) -> bool:
        """Carries all jobs out; False, and nothing done, where the reader has to."""
        if not self._is_usable or not self._lock.acquire(blocking=False):
            return False
        try:
            ring = self._have_ring()
            if ring is None:
                return False
            staged = deque(
                r for job in jobs if (r := begin(ring, job, use_direct=self._use_direct)) is not None
            )
            self._carry_out(ring, staged)
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Gives the ring back, once nobody reads by it."""
        with self._lock:
            self._is_usable = False
            ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()

    def _have_ring(self) -> Ring[Flight] | None:
        if self._ring is None and self._is_usable:
            try:
                self._ring = self._make_ring(DEPTH)
            except RingUnusable:
                self._is_usable = False
        return self._ring

    def _carry_out(self, ring: Ring[Flight], staged: deque[Prepared[Flight]]) -> None:
        try:
            while staged or ring.in_flight:
                for _ in range(min(ring.room, len(staged))):
                    ring.start(staged.popleft())
                is_sent = ring.send()
                landed = ring.completed()
                for flight, result in landed:
                    land(flight, result, use_direct=self._use_direct)
                if not is_sent:
                    time.sleep(_BUSY_SECONDS)
                elif ring.in_flight and not landed:
                    ring.wait()
        except OSError:
            self._give_up(ring, staged)
        except BaseException:  # an interrupt: nothing may be written to the callers' memory afterwards
            self._give_up(ring, staged)
            raise

    def _give_up(self, ring: Ring[Flight], staged: deque[Prepared[Flight]]) -> None:
        """The ring takes no more reads: what it has is waited for, the rest is read the plain way."""
        self._is_usable, self._ring = False, None
        unsent = [*ring.take_unsent(), *(read.token for read in staged)]
        while ring.in_flight:
            for flight, result in ring.completed():
                land(flight, result, use_direct=self._use_direct)
            if ring.in_flight:
                ring.wait()
        for flight in unsent:
            land(flight, OSError(errno.EAGAIN, "not sent"), use_direct=self._use_direct)
        ring.close()
