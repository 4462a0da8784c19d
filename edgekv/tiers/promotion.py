"""What selected attention keeps in memory: abstracts of every column to choose from, and the leaves it chose.

Both share the host's limit with whole columns (on a GPU promoted leaves share the device's). Makes abstracts of
what was computed or stored without them. Knows rooms and places; not what is selected nor why.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

import edgekv_kernels as kernels
from edgekv.cache.directory import ABSENT
from edgekv.errors import CapacityError
from edgekv.tiers.abstracts import Abstracts
from edgekv.tiers.arrivals import DamagedColumns
from edgekv.tiers.kept_abstracts import KeptAbstracts, sections_of
from edgekv.tiers.promoted import PromotedLeaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgekv.cache.sequence import Sequence
    from edgekv.tiers.disk import LayerRead
    from edgekv.tiers.memory import MemoryTier
    from edgekv.tiers.mover import Mover
    from edgekv_storage import Pieces

_CHUNK_COLUMNS = 32  # read back at once to make their abstracts


class Promotion:
    """Of all warm sequences; engine thread only.

    `make_room(num_bytes, owner)` frees that much of the host if it can, `make_device_room(num_slots)` so many slots
    of the device; `drop_own(owner, num_slots, why)` so many of the host at the cost of the owner's whole columns.
    """

    def __init__(
        self,
        mover: Mover,
        make_room: Callable[[int, Sequence], None],
        make_device_room: Callable[[int], None],
        drop_own: Callable[[Sequence, int, str], None],
    ) -> None:
        self._mover = mover
        self._make_device_room = make_device_room
        self._drop_own = drop_own
        self._make_room = make_room
        self._abstracts: dict[bytes, Abstracts] = {}
        self._floor = 0
        shape = mover.host.shape
        key_bytes = kernels.key_bytes(shape.num_kv_heads, shape.head_dim)
        node_bytes = kernels.node_bytes(shape.num_kv_heads, shape.head_dim)
        self._kept = None
        if mover.disk is not None:
            self._kept = KeptAbstracts(mover.disk.store, shape.num_layers, key_bytes, node_bytes)
        self.promoted = PromotedLeaves(mover)

    def open(
        self, sequence: Sequence, num_columns: int, num_slots: int, at_least: int
    ) -> Abstracts | MemoryTier:
        """Abstracts of the first `num_columns` columns, and `num_slots` slots for promoted leaves if so many are
        away; the tier that has no room for the abstracts, for `at_least` slots or for what passes through it.

        Raises:
            DamagedColumns: columns without abstracts could not be read back.
        """
        abstracts = self.make_abstracts(sequence, num_columns)
        if abstracts is None:
            return self._mover.host
        directory = sequence.directory
        num_away = directory.num_away(in_place=self._mover.in_place) * directory.num_layers
        self._floor = min(at_least, num_away)
        tier = self.promoted.tier
        wanted = min(num_slots, num_away, max(self._floor, tier.slots.num_slots // 2))
        self._own_columns_give_way(sequence, wanted)
        if not self.promoted.open(sequence, wanted):
            if self.promoted.num_slots == 0:
                self._room_for(sequence, wanted)
            if self.promoted.num_slots + tier.num_free < self._floor:
                self._room_for(sequence, self._floor - self.promoted.num_slots)
            if not self.promoted.open(sequence, min(wanted, self.promoted.num_slots + tier.num_free)):
                return tier
        if self.promoted.num_slots < self._floor:
            return tier
        return abstracts if not wanted or self._can_land(sequence) else self._mover.host

    def _can_land(self, sequence: Sequence) -> bool:
        """Whether leaves can come from disk: to a GPU through slots of the host, taken last, since making room on
        the device may cost them.
        """
        landing, host = self.promoted.landing, self._mover.host
        if landing is None or landing.is_open:
            return True
        if host.num_free < landing.wanted:
            self._make_room(landing.wanted * host.shape.leaf_bytes, sequence)
        return landing.open()

    def _own_columns_give_way(self, sequence: Sequence, num_slots: int) -> None:
        """Drop whole columns from the host as far as `num_slots` promoted leaves want their room.

        They are clean copies of what is on disk, and a step reads few leaves of each. Without it slots that were
        taken while little was away stayed all there were: each layer of a long conversation threw out what the next
        token would have needed.
        """
        tier = self.promoted.tier
        missing = num_slots - self.promoted.num_slots - tier.num_free
        if missing > 0 and tier is self._mover.host:
            self._drop_own(sequence, missing, "leaves that were selected need the room")

    def _room_for(self, sequence: Sequence, num_slots: int) -> None:
        """As far as it goes. Not asked for more once there are some: these themselves would have to give way."""
        if self.promoted.tier is self._mover.host:
            self._make_room(num_slots * self.promoted.tier.shape.leaf_bytes, sequence)
        else:
            with suppress(CapacityError):
                self._make_device_room(num_slots)

    def sections(self, sequence: Sequence, columns: range) -> dict[int, bytes | Pieces]:
        """What is written beside `columns`; nothing where their abstracts were never made."""
        known = self._abstracts.get(sequence.id)
        found = None if known is None else known.sections(columns)
        return {} if found is None else sections_of(*found)

    def shorten(self, sequence: Sequence, num_columns: int) -> None:
        """Columns from `num_columns` on are no more."""
        if (known := self._abstracts.get(sequence.id)) is not None:
            known.shorten(num_columns)
        self.promoted.forget_columns(sequence, num_columns)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence."""
        self.promoted.release(sequence)
        if (known := self._abstracts.pop(sequence.id, None)) is not None:
            known.shorten(0)

    def give_way(self, active: Sequence | None, num_slots: int, tier: MemoryTier) -> None:
        """Free `num_slots` slots of `tier` that are only a cache, as far as it goes: abstracts of idle sequences,
        and promoted leaves but for those that one step of the active sequence needs.
        """
        if tier is self._mover.host:
            self._drop_idle_abstracts(active)
        if tier is not self.promoted.tier:
            if self.promoted.landing is not None:  # opened again before the next pass that selects
                self.promoted.landing.close()
            return
        if self.promoted.serves(active):
            self.promoted.shrink(max(self._floor, self.promoted.num_slots - num_slots))
        else:
            self.promoted.close()

    def _drop_idle_abstracts(self, active: Sequence | None) -> None:
        for sequence_id, known in list(self._abstracts.items()):
            if active is None or sequence_id != active.id:
                known.shorten(0)
                del self._abstracts[sequence_id]

    def make_abstracts_at_hand(self, sequence: Sequence) -> None:
        """Those of columns that are in memory, as far as the host has room: never at another's cost, and nothing is
        read.

        After a pass, while its columns are on the device; the rest is done when it is needed.
        """
        known = self._abstracts.get(sequence.id)
        first = 0 if known is None else known.num_columns
        stop = sequence.num_full
        if first == stop or not self._lies_in_memory(sequence, first, stop):
            return
        known = self._of(sequence)
        if known.can_extend(stop) and known.reserve(stop - first):
            with known.all_or_none(stop):
                self._add(sequence, known, np.arange(first, stop))

    def _of(self, sequence: Sequence) -> Abstracts:
        abstracts = self._abstracts.get(sequence.id)
        if abstracts is None:
            host = self._mover.host
            abstracts = Abstracts(host.shape, host.ledger, lambda i, c: self._fetch(sequence, i, c))
            self._abstracts[sequence.id] = abstracts
        return abstracts

    def make_abstracts(self, sequence: Sequence, num_columns: int) -> Abstracts | None:
        """Abstracts of the first `num_columns` columns, from where these lie; None when the host has no room.

        Nothing may be in flight. Of columns on disk they are read back, or made of the leaves where missing.

        Raises:
            DamagedColumns: they could not be read or verified.
        """
        abstracts = self._of(sequence)
        written = min(num_columns, sequence.num_written)
        if abstracts.num_columns < written and not self._adopt(sequence, abstracts, written):
            return None
        while abstracts.num_columns < num_columns:
            first = abstracts.num_columns
            columns = np.arange(first, min(num_columns, first + _CHUNK_COLUMNS))
            if not self._reserve(sequence, abstracts, len(columns)):
                return None
            with abstracts.all_or_none(first + len(columns)):
                self._add(sequence, abstracts, columns)
        return abstracts

    def _adopt(self, sequence: Sequence, abstracts: Abstracts, num_columns: int) -> bool:
        """Those of columns on disk, as far as their records have them; False when the host has no room."""
        kept, first = self._kept, abstracts.num_columns
        if kept is None or self._lies_in_memory(sequence, first, num_columns):
            return True
        records = kept.nodes(sequence.directory.places[:num_columns], first)
        if not records:
            return True
        stop = records[-1].stop
        if not self._reserve(sequence, abstracts, stop - first):
            return False
        with abstracts.all_or_none(stop):
            abstracts.adopt(stop, {n: node for record in records for n, node in record.nodes.items()})
        return True

    def _lies_in_memory(self, sequence: Sequence, first: int, stop: int) -> bool:
        held = sequence.directory.device[0, first:stop] != ABSENT
        if self._mover.in_place:
            held |= sequence.directory.host[0, first:stop] != ABSENT
        return bool(held.all())

    def _fetch(self, sequence: Sequence, layer: int, columns: NDArray[np.intp]) -> None:
        """Low-bit keys of one layer: from their sections, or made anew of the leaves where these are damaged.

        Raises:
            DamagedColumns: the leaves are damaged too.
        """
        abstracts, directory = self._abstracts[sequence.id], sequence.directory
        assert self._kept is not None
        columns = columns[abstracts.is_absent(layer, columns)]
        keys = abstracts.keys_in(layer)
        abstracts.arrived(layer, self._kept.read_keys(directory.places[: len(keys)], layer, columns, keys))
        for column in columns[abstracts.is_absent(layer, columns)]:
            keys[column] = self._keys_of_leaf(sequence, layer, column)
            abstracts.arrived(layer, np.array([column]))

    def _keys_of_leaf(self, sequence: Sequence, layer: int, column: np.intp) -> NDArray[np.uint8]:
        mover, directory = self._mover, sequence.directory
        for tier, slots in ((mover.host, directory.host), (mover.device, directory.device)):
            if slots[layer, column] != ABSENT:
                return _keys_in(tier, slots[layer, column])
        if (found := self.promoted.find(sequence, layer, int(column))) != ABSENT:
            return _keys_in(self.promoted.tier, found)
        slot_taken = self._take_host(sequence, 1)
        assert mover.disk is not None, "a leaf is nowhere"
        try:
            read = mover.disk.read(directory.places, layer, np.array([column]), slot_taken, mover.host)
            if len(read.wait()):
                raise DamagedColumns(int(column), 1)
            return _keys_in(mover.host, slot_taken[0])
        finally:
            mover.host.give(slot_taken)

    # Not while a pass runs: room may be made at the cost of leaves that it reads.
    def _take_host(self, sequence: Sequence, num_slots: int) -> NDArray[np.int32]:
        host = self._mover.host
        slots = host.take(num_slots)
        if slots is None:
            self._make_room(num_slots * host.shape.leaf_bytes, sequence)
            slots = host.take(num_slots)
        if slots is None:
            raise CapacityError("the host limit has no room for one leaf; raise --host-budget")
        return slots

    def _reserve(self, sequence: Sequence, abstracts: Abstracts, num_columns: int) -> bool:
        if abstracts.reserve(num_columns):
            return True
        total = abstracts.num_columns + num_columns
        self._make_room(abstracts.bytes_of(total) - abstracts.bytes_of(abstracts.num_columns), sequence)
        return abstracts.reserve(num_columns)

    def _add(self, sequence: Sequence, abstracts: Abstracts, columns: NDArray[np.intp]) -> None:
        directory, mover = sequence.directory, self._mover
        device, host = directory.device[:, columns], directory.host[:, columns]
        on_device, on_host = device[0] != ABSENT, host[0] != ABSENT
        if on_device.all():
            abstracts.extend(mover.device.pool, device)
        elif mover.in_place and (on_device | on_host).all():
            slots = np.where(device != ABSENT, device + mover.device.first_slot, host + mover.host.first_slot)
            abstracts.extend(mover.host.arena, slots.astype(np.int32))
        elif on_host.all():
            abstracts.extend(mover.host.pool, host)
        elif len(columns) > 1:
            for i in range(len(columns)):
                self._add(sequence, abstracts, columns[i : i + 1])
        else:
            self._add_from_disk(sequence, abstracts, columns)

    def _add_from_disk(self, sequence: Sequence, abstracts: Abstracts, column: NDArray[np.intp]) -> None:
        directory, mover = sequence.directory, self._mover
        slots = self._take_host(sequence, directory.num_layers)
        assert mover.disk is not None, "a column is nowhere"
        reads: list[LayerRead] = []
        try:
            for layer in range(directory.num_layers):
                own = slots[layer : layer + 1]
                reads.append(mover.disk.read(directory.places, layer, column, own, mover.host))
            damaged = sum(len(read.wait()) for read in reads)
            if damaged:
                raise DamagedColumns(int(column[0]), damaged)
            abstracts.extend(mover.host.pool, slots[:, None])
        finally:
            for read in reads:  # one layer's may have been refused while others' are landing
                read.land()
            mover.host.give(slots)


def _keys_in(tier: MemoryTier, slot: int | np.int32) -> NDArray[np.uint8]:
    """Low-bit keys of the leaf in one slot."""
    slots = torch.tensor([int(slot)], dtype=torch.int32, device=tier.pool.device)
    return kernels.pack_keys(tier.pool, slots)[0].cpu().numpy()
