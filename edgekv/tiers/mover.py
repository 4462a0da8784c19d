"""The only code that copies KV between tiers: it carries out what placement decided and decides nothing.

A move takes its room at the target first; where that fails nothing moved. An upper copy of something that
lies lower is clean, and dropping it is free.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekv.cache.directory import ABSENT
from edgekv.cache.runs import common_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgekv.cache.sequence import Sequence
    from edgekv.tiers.disk import DiskTier, Sections
    from edgekv.tiers.lane import CopyLane
    from edgekv.tiers.memory import MemoryTier

    Columns = NDArray[np.intp]
    Slots = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Mover:
    """Copies columns (all layers of 16 tokens) of a sequence between the device, host and disk tiers.

    `in_place`: host memory can be attended where it lies (the device is the CPU).
    """

    device: MemoryTier
    host: MemoryTier
    disk: DiskTier | None
    lane: CopyLane
    in_place: bool

    def copy_slots(
        self, source: MemoryTier, source_slots: Slots, target: MemoryTier, target_slots: Slots
    ) -> None:
        """Copy leaves slot by slot, neighbours at once."""
        with self.lane.copying():
            for start, stop in common_runs(source_slots, target_slots):
                taken = source.pool[source_slots[start] : source_slots[start] + stop - start]
                place = target.pool[target_slots[start] : target_slots[start] + stop - start]
                place.copy_(taken, non_blocking=True)

    def demote_to_host(self, sequence: Sequence, columns: Columns) -> bool:
        """Give columns on the device a host copy; False when the host has no room."""
        directory = sequence.directory
        missing = columns[directory.host[0, columns] == ABSENT]
        slots = self.host.take(len(missing) * directory.num_layers)
        if slots is None:
            return False
        with self._kept_or_given(self.host, slots):
            self.copy_slots(self.device, directory.device[:, missing].ravel(), self.host, slots)
            self.lane.host_waits()
            directory.put_host(missing, slots.reshape(directory.num_layers, -1))
        return True

    def promote_to_device(self, sequence: Sequence, columns: Columns) -> bool:
        """Give columns on the host a device copy; False when the device has no room."""
        directory = sequence.directory
        slots = self.device.take(len(columns) * directory.num_layers)
        if slots is None:
            return False
        with self._kept_or_given(self.device, slots):
            self.copy_slots(self.host, directory.host[:, columns].ravel(), self.device, slots)
            self.lane.computation_waits()
            directory.put_device(columns, slots.reshape(directory.num_layers, -1))
        return True

    @contextmanager
    def _kept_or_given(self, tier: MemoryTier, slots: Slots) -> Iterator[None]:
        """While leaves are copied into `slots` and recorded, which is the last step: if it fails they go back."""
        try:
            yield
        except BaseException:
            self.lane.host_waits()  # copies that were issued still land there
            tier.give(slots)
            raise

    def drop_device(self, sequence: Sequence, columns: Columns) -> None:
        """Give up device copies (of those columns that have one)."""
        directory = sequence.directory
        held = columns[directory.device[0, columns] != ABSENT]
        slots = directory.device[:, held].ravel()
        directory.put_device(held, np.full((directory.num_layers, len(held)), ABSENT, np.int32))
        self.device.give(slots)  # not before: what is recorded is attended to, whoever else took its slot

    def drop_host(self, sequence: Sequence, columns: Columns) -> None:
        """Give up host copies (of those columns that have one)."""
        directory = sequence.directory
        held = columns[directory.host[0, columns] != ABSENT]
        slots = directory.host[:, held].ravel()
        directory.put_host(held, np.full((directory.num_layers, len(held)), ABSENT, np.int32))
        self.host.give(slots)

    def write_extent(self, sequence: Sequence, columns: range, sections: Sections) -> bool:
        """Append full columns to disk, straight from where they lie, `sections` beside them; False when the store
        refuses.
        """
        assert self.disk is not None
        directory = sequence.directory
        index = np.arange(columns.start, columns.stop)
        if not self.in_place and not self.demote_to_host(sequence, index):
            return False
        leaves = []
        for layer in range(directory.num_layers):
            for column in columns:
                slot = int(directory.device[layer, column])
                use_device = self.in_place and slot != ABSENT
                tier = self.device if use_device else self.host
                leaves.append(tier.leaf_view(slot if use_device else int(directory.host[layer, column])))
        return self.disk.append(sequence, columns, leaves, sections)
