"""Columns on their way up, layer by layer: the decoder starts before the last layer has landed.

A leaf is present, absent or in flight: its slot is recorded once the reads of its column were issued, and
nobody may attend to a layer before `wait(layer)` returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekv.cache.sequence import Sequence
    from edgekv.tiers.disk import LayerRead
    from edgekv.tiers.memory import MemoryTier
    from edgekv.tiers.mover import Mover


class DamagedColumns(Exception):  # not an error for users: the engine recomputes from `first`
    """Leaves on disk could not be read or verified; the lowest column affected and how many leaves."""

    def __init__(self, first: int, num_leaves: int) -> None:
        super().__init__(f"{num_leaves} damaged leaves from column {first}")
        self.first = first
        self.num_leaves = num_leaves


class Arrivals:
    """Reads in flight into `tier` for columns of one sequence."""

    def __init__(self) -> None:
        self._reads: dict[int, list[LayerRead]] = {}

    def start(self, mover: Mover, sequence: Sequence, columns: NDArray[np.intp], tier: MemoryTier) -> bool:
        """Take slots for `columns` in `tier` and issue their reads, first layers first; False without room.

        Whatever is raised, then, none of them is recorded and no read of them is in flight.
        """
        directory = sequence.directory
        if len(columns) == 0:
            return True
        taken = tier.take(len(columns) * directory.num_layers)
        if taken is None:
            return False
        slots = taken.reshape(directory.num_layers, -1)
        put = directory.put_device if tier is mover.device else directory.put_host
        assert mover.disk is not None
        issued: list[LayerRead] = []
        try:
            for layer in range(directory.num_layers):
                read = mover.disk.read(directory.places, layer, columns, slots[layer], tier)
                issued.append(read)
            put(columns, slots)  # once all are on their way: nobody waits for what was never asked for
        except BaseException:
            for read in issued:
                read.land()
            tier.give(taken)
            raise
        for layer, read in enumerate(issued):
            self._reads.setdefault(layer, []).append(read)
        return True

    def wait(self, layer: int) -> None:
        """Block until the layer's leaves are there.

        Raises:
            DamagedColumns: some could not be read or verified. Then nothing is in flight any more, and every
                column below the one it names is whole in all layers.
        """
        reads = self._reads.get(layer)
        if reads is None:
            return
        damaged = [column for read in reads for column in read.wait()]
        del self._reads[layer]  # judged: until then `settle` has to look at them
        if damaged:
            damaged += self._settled()
            raise DamagedColumns(int(min(damaged)), len(damaged))

    def wait_all(self) -> None:
        """`wait` for every layer."""
        damage = self.settle()
        if damage is not None:
            raise damage

    def settle(self) -> DamagedColumns | None:
        """Block until nothing is in flight any more; what turned out damaged, if anything did."""
        damaged = self._settled()
        return DamagedColumns(int(min(damaged)), len(damaged)) if damaged else None

    def _settled(self) -> list[np.intp]:
        reads = [read for layer in self._reads.values() for read in layer]
        for read in reads:
            read.land()
        damaged = [column for read in reads for column in read.wait()]
        self._reads.clear()
        return damaged

    @property
    def in_flight(self) -> bool:
        """Whether a wait may still be needed."""
        return bool(self._reads)
