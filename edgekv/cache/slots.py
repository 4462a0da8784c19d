"""Which places of a fixed pool are taken: a slot holds one leaf. Lowest free slots first, so that leaves
taken together lie together and are copied, read and attended in long runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SlotPool:
    """Free list over `num_slots` slots."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_free = num_slots
        self._free = np.ones(num_slots, dtype=np.bool_)

    def take(self, count: int) -> NDArray[np.int32] | None:
        """`count` slots in ascending order, or None (and nothing taken) when fewer are free."""
        if count > self.num_free:
            return None
        found = np.flatnonzero(self._free)[:count].astype(np.int32)
        self._free[found] = False
        self.num_free -= count
        return found

    def give(self, slots: NDArray[np.int32]) -> None:
        """Return slots to the pool; each must be taken."""
        assert not self._free[slots].any(), "a slot was given back twice"
        self._free[slots] = True
        self.num_free += len(slots)
