"""Single leaves of one sequence, brought up because a step selected them; the least recently used give way.

All are clean copies of what lies lower, so giving one up is free. On a CPU they lie in the host pool, which is
attended where it lies; on a GPU in the device pool, and those from disk land on the host first. `where` is the one
table selection looks up slots in: it covers whole columns in memory as well. Knows slots and steps, not why a leaf
was selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekv.cache.directory import ABSENT
from edgekv.tiers.arrivals import DamagedColumns
from edgekv.tiers.landing import Landing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekv.cache.directory import Directory
    from edgekv.cache.sequence import Sequence
    from edgekv.tiers.mover import Mover

_SLACK = 8  # one of so many columns more than there are: copied once in a while, not with each
_SPARE = 16  # one of so many is given up at once: finding the oldest costs the same for one


@dataclass(slots=True)
class Brought:
    """Leaves: `num_read` from disk, `num_missed` because a step waited for them; of these a later step found
    `num_useful` still there. `num_found`: that steps needed and earlier steps had brought, each step's anew.
    """

    num_read: int = 0
    num_missed: int = 0
    num_useful: int = 0
    num_found: int = 0

    @property
    def precision(self) -> float | None:
        """Share of the leaves brought that a later step used; None where none was."""
        return self.num_useful / self.num_missed if self.num_missed else None

    @property
    def recall(self) -> float | None:
        """Share of the leaves needed, of those away from memory, that had been brought before; None without any."""
        needed = self.num_found + self.num_missed
        return self.num_found / needed if needed else None


class PromotedLeaves:
    """Promoted leaves of the sequence that is active; engine thread only."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover
        self.tier = mover.host if mover.in_place else mover.device
        self.landing = None if mover.in_place or mover.disk is None else Landing(mover)
        num_slots = self.tier.slots.num_slots
        self._layer_of = np.zeros(num_slots, np.int32)
        self._column_of = np.zeros(num_slots, np.int32)
        self._used = np.zeros(num_slots, np.int64)
        self._is_new = np.zeros(
            num_slots, np.bool_
        )  # brought since `take_use`, and not used by another step yet
        self._owned = np.empty(0, np.int32)
        self._free: list[int] = []
        self._now = self._begun = 0  # `_used` is above `_begun` once the pass that runs has used a leaf
        self._sequence: Sequence | None = None
        self._version = -1
        self._promoted = np.full((0, 0), ABSENT, np.int32)  # [num_layers, columns or more]: slots of the tier
        self.where = np.full((0, 0), ABSENT, np.int32)
        self.is_partial = False
        self._brought = Brought()

    @property
    def num_slots(self) -> int:
        """Slots taken for single leaves."""
        return len(self._owned)

    def open(self, sequence: Sequence, num_slots: int) -> bool:
        """Serve `sequence` with at least `num_slots` slots; False when the tier has not so many free."""
        if sequence is not self._sequence:
            self.close()
            self._sequence = sequence
        missing = num_slots - self.num_slots
        if missing > 0:
            taken = self.tier.take(missing)
            if taken is None:
                return False
            self._owned = np.concatenate([self._owned, taken])
            self._free += taken.tolist()
        return True

    def close(self) -> None:
        """Give every slot back. Nothing may be in flight."""
        if len(self._owned):
            self.tier.give(self._owned)
        if self.landing is not None:
            self.landing.close()
        self._owned = np.empty(0, np.int32)
        self._free = []
        self._sequence, self._version = None, -1
        self._promoted = np.full((0, 0), ABSENT, np.int32)

    def take_use(self) -> Brought:
        """What was brought up since the last call."""
        brought, self._brought = self._brought, Brought()
        self._is_new[:] = False
        return brought

    @property
    def is_current(self) -> bool:
        """Whether `where` is as the sequence's directory says, and what is away can still come."""
        if self._sequence is None or self._sequence.directory.version != self._version:
            return False
        return self.landing is None or self.landing.is_open or not self.is_partial

    def serves(self, sequence: Sequence | None) -> bool:
        """Whether its leaves are the ones held."""
        return sequence is not None and sequence is self._sequence

    def find(self, sequence: Sequence, layer: int, column: int) -> int:
        """The slot of one leaf, brought up if it is away; ABSENT when this sequence is not served now.

        No room is made for it, so that it may be asked for while a pass runs.

        Raises:
            DamagedColumns: it could not be read or verified.
        """
        if sequence is not self._sequence or not self.is_current or not len(self._owned):
            return ABSENT
        if self._promoted[layer, column] == ABSENT:
            self._now += 1  # looked at once: it may give way to the next one
            self.bring(layer, np.array([column], np.int32))
        return int(self._promoted[layer, column])

    def release(self, sequence: Sequence) -> None:
        """`close` if it is the one served."""
        if sequence is self._sequence:
            self.close()

    def shrink(self, num_slots: int) -> None:
        """Give back all but `num_slots` slots, the least recently used first."""
        surplus = self.num_slots - num_slots
        if surplus <= 0:
            return
        if num_slots == 0:
            self.close()
            return
        if len(self._free) < surplus:
            self._give_way(surplus - len(self._free))
        gone = np.array(self._free[:surplus], np.int32)
        self._owned = np.setdiff1d(self._owned, gone, assume_unique=True)
        del self._free[:surplus]
        self.tier.give(gone)

    def forget_columns(self, sequence: Sequence, num_columns: int) -> None:
        """Columns from `num_columns` on are no more."""
        if sequence is not self._sequence:
            return
        self._version = -1
        gone = self._promoted[:, num_columns:]
        self._promoted = self._promoted[:, :num_columns].copy()
        self._free += gone[gone != ABSENT].tolist()

    def begin_pass(self, sequence: Sequence) -> torch.Tensor:
        """Slots in the arena that attention reads, int32 `[num_layers, columns]`, ABSENT where a leaf is away."""
        assert sequence is self._sequence, "opened for another sequence"
        self._begun = self._now
        directory = sequence.directory
        if self._version != directory.version:
            known = self._promoted.shape[1]
            if known < directory.num_columns:
                room = directory.num_columns + directory.num_columns // _SLACK
                grown = np.full((directory.num_layers, room), ABSENT, np.int32)
                if known:
                    grown[:, :known] = self._promoted
                self._promoted = grown
            self.where = self._slots_of(directory)
            self.is_partial = directory.num_away(in_place=False) > 0 and bool((self.where == ABSENT).any())
            self._version = directory.version
        return torch.from_numpy(self.where)

    def _slots_of(self, directory: Directory) -> NDArray[np.int32]:
        """Slots in the arena, int32 `[num_layers, columns]`: of whole columns, else of promoted leaves or ABSENT.

        Once in 16 tokens over all columns: of a conversation that lies on the device nothing else is looked at.
        """
        device, mover = self._mover.device, self._mover
        where = directory.device + np.int32(device.first_slot)
        if not directory.num_away(in_place=False):
            return where
        away = directory.device == ABSENT
        promoted = self._promoted[:, : directory.num_columns]
        lower = np.where(promoted != ABSENT, promoted + np.int32(self.tier.first_slot), ABSENT)
        if mover.in_place:
            host = directory.host
            lower = np.where(host != ABSENT, host + np.int32(mover.host.first_slot), lower)
        found: NDArray[np.int32] = np.where(away, lower, where)
        return found

    def go_on(self) -> None:
        """Another pass begins over the same table of slots."""
        self._begun = self._now

    def touch(self, layer: int, columns: NDArray[np.int32]) -> None:
        """These are attended to next: they do not give way to those of them that have to be brought."""
        assert self.is_current, "room was made while a pass runs: its table of slots is stale"
        self._now += 1
        slots = self._promoted[layer, columns]
        self._note_used(slots[slots != ABSENT])

    def touch_all(self, columns: NDArray[np.int32], attended: NDArray[np.bool_]) -> None:
        """`touch` for all layers of a pass that is through: a row of `columns` each, those that are `attended`."""
        self._now += 1
        slots = np.take_along_axis(self._promoted, np.where(attended, columns, 0), axis=1)
        self._note_used(slots[attended & (slots != ABSENT)])

    def _note_used(self, slots: NDArray[np.int32]) -> None:
        found = slots[self._used[slots] <= self._begun]  # else counted in this pass, or brought in it
        self._brought.num_found += len(found)
        self._brought.num_useful += int(self._is_new[found].sum())
        self._is_new[found] = False
        self._used[slots] = self._now

    def bring(self, layer: int, columns: NDArray[np.int32]) -> None:
        """Bring leaves up and wait for them.

        Raises:
            DamagedColumns: some on disk could not be read or verified.
        """
        sequence = self._sequence
        assert sequence is not None
        self._brought.num_missed += len(columns)
        slots = self._free_slots(len(columns))
        try:
            damaged = self._fill(sequence, layer, columns, slots)
        except BaseException:
            self._mover.lane.host_waits()  # copies that were issued still land there
            self._free += slots.tolist()
            raise
        if len(damaged):
            self._free += slots.tolist()
            raise DamagedColumns(int(damaged.min()), len(damaged))
        self._record(layer, columns, slots)

    def _fill(
        self, sequence: Sequence, layer: int, columns: NDArray[np.int32], slots: NDArray[np.int32]
    ) -> NDArray[np.intp]:
        """Copy or read leaves into `slots` and wait; those that could not be read or verified."""
        host = sequence.directory.host[layer, columns]
        held = host != ABSENT
        if held.any():  # a GPU: from the host pool
            self._mover.copy_slots(self._mover.host, host[held], self._mover.device, slots[held])
            self._mover.lane.host_waits()  # what lies on the host may give way to a read before long
        on_disk, into = columns[~held].astype(np.intp), slots[~held]
        damaged = self._read(layer, on_disk, into)
        if len(damaged):  # out of memory or of descriptors just then? The store knows which are lost for good
            again = np.isin(on_disk, damaged)
            damaged = self._read(layer, on_disk[again], into[again])
        return damaged

    def _read(self, layer: int, columns: NDArray[np.intp], slots: NDArray[np.int32]) -> NDArray[np.intp]:
        """Read leaves from disk and wait; those that did not arrive."""
        if not len(columns):
            return columns
        assert self._mover.disk is not None, "a leaf is nowhere"
        assert self._sequence is not None
        places = self._sequence.directory.places
        self._brought.num_read += len(columns)
        if self.landing is not None:
            return self.landing.read(places, layer, columns, slots)
        read = self._mover.disk.read(places, layer, columns, slots, self.tier, waits=True)
        return read.wait()

    def _free_slots(self, count: int) -> NDArray[np.int32]:
        if len(self._free) < count:
            self._give_way(max(count, self.num_slots // _SPARE))
        assert len(self._free) >= count, "a step selects no more than there is room for"
        first = len(self._free) - count
        slots = np.array(self._free[first:], np.int32)
        slots.sort()
        del self._free[first:]
        return slots

    def _record(self, layer: int, columns: NDArray[np.int32], slots: NDArray[np.int32]) -> None:
        """Leaves have landed: until now nobody finds them, however bringing them ends."""
        self._layer_of[slots], self._column_of[slots], self._used[slots] = layer, columns, self._now
        self._is_new[slots] = True
        self._promoted[layer, columns] = slots
        self.where[layer, columns] = slots + self.tier.first_slot

    def _give_way(self, count: int) -> None:
        """Free the slots of the `count` leaves that were not selected for longest; none of the latest choice."""
        taken = np.setdiff1d(self._owned, np.array(self._free, np.int32), assume_unique=True)
        taken = taken[self._used[taken] < self._now]
        count = min(count, len(taken))
        if not count:
            return
        oldest = taken[np.argpartition(self._used[taken], count - 1)[:count]]
        self._give(oldest)

    def _give(self, slots: NDArray[np.int32]) -> None:
        layers, columns = self._layer_of[slots], self._column_of[slots]
        mine = self.where[layers, columns] == slots + self.tier.first_slot
        self.where[layers[mine], columns[mine]] = ABSENT
        self._promoted[layers, columns] = ABSENT
        self.is_partial = True
        self._free += slots.tolist()
