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
    """`pool` is `[num_slots, 2, num_kv_heads, LEAF_TOKENS, head_dim]` bf16; every slot is in the ledger.

    Two tiers of the same memory share one `arena`, so that one call attends over leaves of both: slot s of a
    tier is `first_slot + s` there.
    """

    def __init__(
        self,
        tier: Tier,
        shape: LeafShape,
        ledger: Ledger,
        device: torch.device,
        *,
        pinned: bool = False,
        above: MemoryTier | None = None,
    ) -> None:
        """`above`: the other tier of the same memory, whose arena this one shares, behind its slots."""
        self.tier = tier
        self.shape = shape
        self.ledger = ledger
        self.slots = SlotPool(ledger[tier].capacity // shape.leaf_bytes)
        self.first_slot = 0 if above is None else above.slots.num_slots
        self.arena: torch.Tensor
        num_slots = self.first_slot + self.slots.num_slots
        self.arena, view = _arena(num_slots, shape, device, pinned=pinned)
        self._use(view)
        if above is not None:
            above.arena = self.arena
            above._use(view)  # noqa: SLF001  another of this class

    def _use(self, view: memoryview | None) -> None:
        stop = self.first_slot + self.slots.num_slots
        self.pool = self.arena[self.first_slot : stop]
        size = self.shape.leaf_bytes
        self.view = None if view is None else view[self.first_slot * size : stop * size]

    @property
    def num_free(self) -> int:
        """Slots that can be taken: free, and within the limit, which abstracts share."""
        account = self.ledger[self.tier]
        return min(self.slots.num_free, (account.capacity - account.used) // self.shape.leaf_bytes)

    def take(self, count: int) -> NDArray[np.int32] | None:
        """`count` slots, or None when fewer can be had."""
        if count > self.num_free:
            return None
        found = self.slots.take(count)
        assert found is not None
        self.ledger.reserve(self.tier, count * self.shape.leaf_bytes)
        return found

    def give(self, slots: NDArray[np.int32]) -> None:
        """Return slots."""
        self.slots.give(slots)
        self.ledger.release(self.tier, len(slots) * self.shape.leaf_bytes)

    def close(self) -> None:
        """Free the arena. No slot may be in use or in flight."""
        self.pool, self.view = self.pool[:0].clone(), None
        self.arena = self.pool

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
