"""Tries io_uring and measures both readers on one file. Run as a program of its own: a crash must stay there.

Imports nothing of ours, so that it starts at once. Prints one JSON line when io_uring has read what `pread`
reads, or why it cannot, and a second one with bytes per second. Knows nothing of stores.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import sys
import threading
import time
from typing import Any, Self

READ_BYTES = 256 << 10
DEPTH = 16
SECONDS = 0.1  # each of four passes, in turn
_PAGE = 4096


def main(path: str) -> int:
    """`path`: a file of at least READ_BYTES on the drive in question; it is only read."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    reason = _refusal(fd)
    _tell({"works": reason is None, "reason": reason or ""})
    last = os.fstat(fd).st_size // READ_BYTES
    best = {"uring": 0.0, "pread": 0.0}
    for seed in range(2):
        best["pread"] = max(best["pread"], _pread_rate(fd, random.Random(seed), last))  # noqa: S311
        if reason is None:
            best["uring"] = max(best["uring"], _uring_rate(fd, random.Random(seed), last))  # noqa: S311
    _tell(best)
    return 0


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _refusal(fd: int) -> str | None:
    """Why io_uring is of no use for this file, None where it read it well."""
    want, got = mmap.mmap(-1, READ_BYTES), memoryview(mmap.mmap(-1, READ_BYTES))
    num_bytes = os.preadv(fd, [want], 0)
    try:
        with _Ring(1) as ring:
            ring.read(fd, got, 0, 0)
            results = ring.wait()
    except ImportError as error:
        return f"the liburing package cannot be used ({error})"
    except OSError as error:
        return f"the system refuses it ({error.strerror})"
    return None if results == [(0, num_bytes)] and got == want[:] else "it read other bytes than pread"


class _Ring:
    """Just enough of a ring to try one; the store's own is in ring.py."""

    def __init__(self, depth: int) -> None:
        import liburing  # noqa: PLC0415  its absence is an answer

        self._uring: Any = liburing
        self._ring = self._uring.Ring()
        self._entry = self._uring.Cqe()
        self._kept: dict[int, Any] = {}
        self._uring.io_uring_queue_init(depth, self._ring)
        self._event = os.eventfd(0)
        self._uring.io_uring_register_eventfd(self._ring, self._event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._uring.io_uring_queue_exit(self._ring)

    def read(self, fd: int, buffer: memoryview, offset: int, number: int) -> None:
        vector = self._kept[number] = self._uring.Iovec([buffer])
        slot = self._uring.io_uring_get_sqe(self._ring)
        self._uring.io_uring_prep_readv(slot, fd, vector, offset)
        slot.user_data = number

    def wait(self) -> list[tuple[int, int]]:
        """Sends, waits, and returns (number, bytes) of what is over."""
        self._uring.io_uring_submit(self._ring)
        os.eventfd_read(self._event)
        found = []
        for _ in range(self._uring.io_uring_cq_ready(self._ring)):
            self._uring.io_uring_peek_cqe(self._ring, self._entry)
            done = self._entry[0]
            found.append((done.user_data, done.res))
            self._uring.io_uring_cqe_seen(self._ring, done)
        return found


def _buffers() -> list[memoryview]:
    """In huge pages as the engine's pools are: a read of scattered small pages takes up to twice as long."""
    memory = mmap.mmap(-1, DEPTH * READ_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    memory[::_PAGE] = bytes(len(memory) // _PAGE)
    return [memoryview(memory)[at : at + READ_BYTES] for at in range(0, len(memory), READ_BYTES)]


def _uring_rate(fd: int, order: random.Random, last: int) -> float:
    buffers = _buffers()
    began, total, free, in_flight = time.perf_counter(), 0, list(range(DEPTH)), 0
    with _Ring(DEPTH) as ring:
        while (seconds := time.perf_counter() - began) < SECONDS or in_flight:
            while free and seconds < SECONDS:
                number = free.pop()
                ring.read(fd, buffers[number], order.randrange(last) * READ_BYTES, number)
                in_flight += 1
            for number, num_bytes in ring.wait():
                total += num_bytes
                in_flight -= 1
                free.append(number)
    return total / (time.perf_counter() - began)


def _pread_rate(fd: int, order: random.Random, last: int) -> float:
    buffers = _buffers()
    began = time.perf_counter()
    totals = [0] * DEPTH
    seeds = [order.random() for _ in range(DEPTH)]

    def work(number: int) -> None:
        buffer, mine = buffers[number], random.Random(seeds[number])  # noqa: S311
        while time.perf_counter() - began < SECONDS:
            totals[number] += os.preadv(fd, [buffer], mine.randrange(last) * READ_BYTES)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(DEPTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals) / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
