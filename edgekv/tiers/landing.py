"""Host slots through which single leaves come from disk to a GPU, whose memory a disk cannot be read into.

A few slots, used again and again: a read lands there, is copied up, and the copy is waited for. Knows slots, not
whose leaves they hold nor why they are wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekv.tiers.mover import Mover
    from edgekv_storage import LeafPlace

MOST_LEAVES = 64  # read at once: more than a layer lacks, once neighbouring steps' choices are on the device


class Landing:
    """Engine thread only."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover
        self._slots = np.empty(0, np.int32)
        # Of a small host not more than a share: it holds whole columns and abstracts as well.
        self.wanted = min(MOST_LEAVES, max(1, mover.host.slots.num_slots // 16))

    @property
    def is_open(self) -> bool:
        """Whether there is a slot to land in."""
        return len(self._slots) > 0

    def open(self) -> bool:
        """Take what the host has left of `wanted` slots; False when that is none."""
        if not self.is_open:
            taken = self._mover.host.take(min(self.wanted, self._mover.host.num_free))
            self._slots = np.empty(0, np.int32) if taken is None else taken
        return self.is_open

    def close(self) -> None:
        """Give them back. Nothing may be in flight."""
        if self.is_open:
            self._mover.host.give(self._slots)
            self._slots = np.empty(0, np.int32)

    def read(
        self, places: list[LeafPlace], layer: int, columns: NDArray[np.intp], into: NDArray[np.int32]
    ) -> NDArray[np.intp]:
        """Bring `columns` of a layer from disk into the device slots `into` and wait; those that did not arrive."""
        mover, size = self._mover, len(self._slots)
        assert mover.disk is not None, "a leaf is nowhere"
        assert size, "opened before a pass"
        damaged = []
        for start in range(0, len(columns), size):
            part, target = columns[start : start + size], into[start : start + size]
            source = self._slots[: len(part)]
            damaged.append(mover.disk.read(places, layer, part, source, mover.host, waits=True).wait())
            mover.copy_slots(mover.host, source, mover.device, target)
            mover.lane.host_waits()  # the next read lands in the same slots
        return np.concatenate(damaged)
