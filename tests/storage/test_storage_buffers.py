"""Pooled aligned memory: aligned, used again, bounded while unused."""

from __future__ import annotations

import ctypes

from edgekv_storage.io.buffers import BufferPool
from edgekv_storage.segments.format import PAGE


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_buffers_are_aligned_exact_and_used_again():
    """Guards direct reads against unaligned memory, and the pool against handing a block out twice."""
    pool = BufferPool()
    for num_bytes in (0, 1, PAGE, 12_288 + 16, (1 << 20) + 2 * PAGE, (1 << 20) + 2 * PAGE + 1, 5 << 20):
        first, second = pool.take(num_bytes), pool.take(num_bytes)
        assert len(first) == len(second) == num_bytes
        assert first.obj is not second.obj
        assert not num_bytes or address(first) % PAGE == address(second) % PAGE == 0
        block = first.obj
        pool.give(first[: num_bytes // 2])
        assert (pool.take(num_bytes).obj is block) == (num_bytes <= (1 << 20) + 2 * PAGE)


def test_unused_buffers_are_kept_up_to_the_limit():
    """Guards memory after a burst: what exceeds the limit is let go."""
    pool = BufferPool(keep_bytes=3 << 20)
    blocks = [pool.take(1 << 20) for _ in range(8)]
    mine = {id(b.obj) for b in blocks}
    for block in blocks:
        pool.give(block)
    kept = [pool.take(1 << 20) for _ in range(8)]
    assert sum(id(b.obj) in mine for b in kept) == 2
