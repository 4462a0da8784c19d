"""The pool of a memory tier: one fixed arena of leaf slots on the device or in host memory.

On a machine without a GPU both pools are ordinary memory with their own limits, so all tiers are real
everywhere. The arena is reserved whole (untouched pages cost nothing) and never grows. CPU arenas start on
a page, so that direct I/O can read into a slot.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from edgekv.cache.leaf import LEAF_TOKENS, LeafShape
from edgekv.cache.slots import SlotPool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekv.cache.ledger import Ledger, Tier


class MemoryTier:
    """`pool` is `[num_slots, 2, num_kv_heads, LEAF_TOKENS, head_dim]` bf16; every slot is in the ledger."""

    def __init__(
        self, tier: Tier, shape: LeafShape, ledger: Ledger, device: torch.device, *, pinned: bool = False
    ) -> None:
        self.tier = tier
        self.shape = shape
        self.ledger = ledger
        self.slots = SlotPool(ledger[tier].capacity // shape.leaf_bytes)
        self.pool, self.view = _arena(self.slots.num_slots, shape, device, pinned=pinned)

    def take(self, count: int) -> NDArray[np.int32] | None:
        """`count` slots, or None when the pool has fewer free."""
        found = self.slots.take(count)
        if found is not None:
            fits = self.ledger.reserve(self.tier, count * self.shape.leaf_bytes)
            assert fits, "the pool is no larger than its limit"
        return found

    def give(self, slots: NDArray[np.int32]) -> None:
        """Return slots."""
        self.slots.give(slots)
        self.ledger.release(self.tier, len(slots) * self.shape.leaf_bytes)

    def close(self) -> None:
        """Free the arena. No slot may be in use or in flight."""
        self.pool, self.view = self.pool[:0].clone(), None

    def leaf_view(self, slot: int, count: int = 1) -> memoryview:
        """The bytes of `count` neighbouring slots (CPU pools only)."""
        assert self.view is not None, "device memory has no host address"
        size = self.shape.leaf_bytes
        return self.view[slot * size : (slot + count) * size]


def _arena(
    num_slots: int, shape: LeafShape, device: torch.device, *, pinned: bool
) -> tuple[torch.Tensor, memoryview | None]:
    dims = (num_slots, 2, shape.num_kv_heads, LEAF_TOKENS, shape.head_dim)
    if device.type != "cpu":
        return torch.empty(dims, dtype=torch.bfloat16, device=device), None
    num_bytes = num_slots * shape.leaf_bytes
    if num_bytes == 0:
        return torch.empty(dims, dtype=torch.bfloat16), memoryview(b"")
    if pinned:
        flat = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        return flat.view(torch.bfloat16).view(dims), memoryview(flat.numpy().data)
    arena = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages; restoring then faults page by page
            arena.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(arena, dtype=torch.bfloat16).view(dims), memoryview(arena)
