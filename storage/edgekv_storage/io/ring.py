"""One io_uring of the `liburing` package, with what that package leaves to its caller.

Knows submission, completion and the binding's sharp edges; not jobs, files or priorities. One thread makes it, uses
it and closes it; only `wake` may be called from others, before `close`.

The binding waits with the GIL held (so an eventfd is waited for instead), keeps no buffer alive, accepts read-only
memory, crashes on a closed ring, and submits a queue slot whose preparation failed: so everything is checked before
a slot is taken, and every read is kept here until it has completed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
from typing import Any, Generic, NamedTuple, TypeVar

_IOV_MAX = 1024
_MAX_OFFSET = 1 << 62
_TRY_AGAIN = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM})


_Token = TypeVar("_Token")


class RingUnusable(Exception):
    """No ring can be had here; the text says why."""


class Prepared(NamedTuple, Generic[_Token]):
    """A read that was checked, and all that must stay alive until the kernel is done with it."""

    token: _Token
    fd: int
    vector: Any
    buffers: list[memoryview]
    offset: int
    copies: bool


class Ring(Generic[_Token]):
    """Up to `depth` reads in flight."""

    def __init__(self, depth: int) -> None:
        """Raises RingUnusable."""
        self._uring, self._ring = _set_up(depth)
        self._event = os.eventfd(0, os.EFD_CLOEXEC)
        self._entry = self._uring.Cqe()
        self._reads: dict[int, Prepared[_Token]] = {}
        self._unsent: list[int] = []
        self._count = 0
        self.depth = depth
        try:
            self._uring.io_uring_register_eventfd(self._ring, self._event)
        except OSError as error:
            self.close()
            raise RingUnusable(f"io_uring has no eventfd here ({error.strerror})") from error

    @property
    def room(self) -> int:
        """Reads that may be started now; what has completed counts no more, taken or not."""
        return self.depth - len(self._reads) + int(self._uring.io_uring_cq_ready(self._ring))

    @property
    def in_flight(self) -> int:
        """Reads whose end has not been told yet by `completed`, those not sent included."""
        return len(self._reads)

    def prepare(
        self, token: _Token, fd: int, buffers: list[memoryview], offset: int, *, copies: bool = False
    ) -> Prepared[_Token]:
        """Checks a read and gets it ready. Raises ValueError for what the kernel must not see.

        `copies`: the read may be a long copy from the page cache, to be made by a thread of the kernel.
        """
        if not (0 < len(buffers) <= _IOV_MAX and 0 <= offset < _MAX_OFFSET and fd >= 0):
            raise ValueError("no such read can be made")
        for buffer in buffers:
            if buffer.readonly or not buffer.contiguous or not buffer.nbytes:
                raise ValueError("a read needs writable, contiguous memory")
        return Prepared(token, fd, self._uring.Iovec(buffers), buffers, offset, copies)

    def start(self, read: Prepared[_Token]) -> None:
        """Puts a read into the queue, where there is `room`; `send` tells the kernel."""
        slot = self._uring.io_uring_get_sqe(self._ring)
        assert slot is not None, "the queue has a slot for every read"
        self._uring.io_uring_prep_readv(slot, read.fd, read.vector, read.offset)
        number = slot.user_data = self._count
        if read.copies:  # else `send` would copy with the GIL held
            self._uring.io_uring_sqe_set_flags(slot, self._uring.IOSQE_ASYNC)
        self._count += 1
        self._reads[number] = read
        self._unsent.append(number)

    def send(self) -> bool:
        """Starts all that was put into the queue, in one call; False: the kernel wants some to complete first.

        Raises OSError where the ring is of no use any more: see `take_unsent`.
        """
        while self._unsent:
            try:
                sent = self._uring.io_uring_submit(self._ring)
            except OSError as error:
                if error.errno in _TRY_AGAIN:
                    return False
                raise
            if not sent:
                return False
            del self._unsent[:sent]
        return True

    def take_unsent(self) -> list[_Token]:
        """Tokens of reads the kernel never took and, the ring being given up, never will."""
        unsent, self._unsent = self._unsent, []
        return [self._reads.pop(number).token for number in unsent]

    def wait(self) -> None:
        """Without the GIL, until something completed or `wake` was called; may return for nothing."""
        with contextlib.suppress(InterruptedError):
            os.eventfd_read(self._event)

    def wake(self) -> None:
        """Ends a `wait`, also one that begins later. Any thread."""
        os.eventfd_write(self._event, 1)

    def completed(self) -> list[tuple[_Token, int | OSError]]:
        """(token, bytes read or the error) of reads that are over; does not wait."""
        uring, ring, entry = self._uring, self._ring, self._entry
        found: list[tuple[_Token, int | OSError]] = []
        for _ in range(uring.io_uring_cq_ready(ring)):
            uring.io_uring_peek_cqe(ring, entry)
            done = entry[0]  # its fields are those of the queue's head: read them before it moves on
            number = done.user_data
            try:
                result: int | OSError = done.res
            except OSError as error:
                result = error
            uring.io_uring_cqe_seen(ring, done)
            found.append((self._reads.pop(number).token, result))
        return found

    def close(self) -> None:
        """Gives the ring back; call when nothing is in flight."""
        assert not self._reads, "the kernel may still write into memory of reads in flight"
        ring, self._ring = self._ring, None
        if ring is not None:
            self._uring.io_uring_queue_exit(ring)
            os.close(self._event)


def _set_up(depth: int) -> tuple[Any, Any]:
    try:
        uring: Any = importlib.import_module("liburing")
    except ImportError as error:
        raise RingUnusable(f"the liburing package cannot be used ({error})") from error
    if not hasattr(os, "eventfd"):
        raise RingUnusable("this system has no eventfd")
    ring = uring.Ring()
    try:
        uring.io_uring_queue_init(depth, ring)
    except OSError as error:
        raise RingUnusable(f"the system refuses io_uring ({error.strerror})") from error
    return uring, ring
