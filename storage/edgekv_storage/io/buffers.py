"""Page-aligned memory for reads that cannot land where they are wanted, used again and again.

Knows sizes only; not what is read. Fresh pages cost a fault each, so blocks are kept; how many are out at once
is bounded by the reads in flight, not here.
"""

from __future__ import annotations

import mmap
import threading

from edgekv_storage.segments.format import PAGE, round_up

KEEP_BYTES = 20 << 20  # a megabyte in fresh pages can cost 0.7 ms, as much as reading it
_SIZES = tuple(size + 2 * PAGE for size in (16 << 10, 64 << 10, 256 << 10, 1 << 20))  # with padding and a tag


class BufferPool:
    """Blocks of a few sizes; up to `keep_bytes` of unused ones are kept. Any thread."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_bytes = keep_bytes
        self._kept = 0
        self._lock = threading.Lock()
        self._free: dict[int, list[mmap.mmap]] = {size: [] for size in _SIZES}

    def take(self, num_bytes: int) -> memoryview:
        """Writable, page-aligned, exactly `num_bytes` long, with anything in it. Raises OSError (no memory)."""
        size = next((size for size in _SIZES if num_bytes <= size), 0)
        if size:
            with self._lock:
                if self._free[size]:
                    self._kept -= size
                    return memoryview(self._free[size].pop())[
                        :num_bytes
                    ]  # the one used last: still in the caches
        return memoryview(mmap.mmap(-1, size or round_up(num_bytes) or PAGE))[:num_bytes]

    def give(self, buffer: memoryview) -> None:
        """Takes back what `take` returned, or a slice of it; the giver must not use it any more."""
        block = buffer.obj
        assert isinstance(block, mmap.mmap), "not a buffer of a pool"
        size = len(block)
        if size not in self._free:
            return
        with self._lock:
            if self._kept + size <= self._keep_bytes:
                self._kept += size
                self._free[size].append(block)


POOL = BufferPool()
"""The process has one: what one store does not use another may."""
