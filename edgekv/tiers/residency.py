"""Keeps every column of every sequence somewhere within the limits, and says where attention finds it.

Asks placement what to demote and the mover to do it. Its promises: room is made before it is used; a column
of the active sequence is never lost (a durable one is written first, and when no tier can take it the error
says which limit to raise); idle sequences give way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekv.cache.directory import ABSENT
from edgekv.cache.expectations import Expectations
from edgekv.cache.leaf import LEAF_TOKENS, NODE_COLUMNS, num_columns
from edgekv.cache.moves import MoveLog
from edgekv.errors import CapacityError
from edgekv.policies.placement import Candidate, Placement, own_order
from edgekv.tiers.memory import MemoryTier
from edgekv.tiers.promotion import Promotion
from edgekv.tiers.stream import SegmentStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgekv.cache.sequence import Sequence
    from edgekv.tiers.abstracts import Abstracts
    from edgekv.tiers.arrivals import Arrivals
    from edgekv.tiers.mover import Mover

EXTENT_COLUMNS = 16  # 256 tokens: written together while a long turn goes on
MAX_EXTENT_COLUMNS = 256  # what one record holds at most, after a time without a disk
MAX_BLOCK_COLUMNS = 32  # 512 tokens: how long a cancel may have to wait in prefill
MAX_SEGMENT_SLOTS = 512
_HOST_FULL = "the host limit was reached"


class Residency:
    """Bookkeeper of all warm sequences; engine thread only.

    `worth_of(sequence)`: attention that its first columns have had, where the method of selection keeps account.
    """

    def __init__(self, mover: Mover, placement: Placement) -> None:
        self.mover = mover
        self.placement = placement
        self.sequences: dict[bytes, Sequence] = {}
        self._active: Sequence | None = None
        self._being_written: set[bytes] = set()
        self.moves = MoveLog()
        self.expectations = Expectations()
        num_slots = mover.device.slots.num_slots
        num_layers = mover.device.shape.num_layers
        segment = num_slots // 6 if mover.in_place else min(num_slots // 6, mover.host.slots.num_slots // 4)
        self.stream = SegmentStream(mover, min(MAX_SEGMENT_SLOTS, max(1, segment)))
        spare = (num_slots - 2 * self.stream.segment_slots) // num_layers - 1
        self.block_columns = max(1, min(MAX_BLOCK_COLUMNS, spare - 1))
        self.worth_of: Callable[[Sequence], NDArray[np.float32]] = lambda _: np.empty(0, np.float32)
        self.promotion = Promotion(mover, self._make_host_bytes, self._make_room, self._drop_own)
        assert num_slots >= smallest_device_slots(num_layers)

    def carry_on(self, earlier: Residency) -> None:
        """Take over what was said of sequences, and what is told of moves; the tiers themselves are new."""
        self.expectations, self.moves = earlier.expectations, earlier.moves

    @property
    def device_tokens(self) -> int:
        """Tokens of one sequence that the device pool holds, with a column to spare."""
        return (self.mover.device.slots.num_slots // self.mover.device.shape.num_layers - 1) * LEAF_TOKENS

    def activate(self, sequence: Sequence | None) -> None:
        """From now on this is the sequence that must not give way (None: all are idle)."""
        self._active = sequence
        if sequence is not None:
            self.expectations.fulfilled(sequence.id)
        if self.mover.disk is not None:
            self.mover.disk.active_id = None if sequence is None else sequence.id

    def restore(
        self, sequence: Sequence, num_expected: int, arrivals: Arrivals, *, last: int | None = None
    ) -> None:
        """Start bringing absent columns up: all to the device if they and the `num_expected` tokens to come
        fit there, else as many as fit beside the staging segments, then to the host; the rest is streamed.
        `last`: only so many columns at the end, and the first one; a selection asks for others when it needs them.

        Raises:
            DamagedColumns: (on a GPU) leaves on disk could not be read or verified; nothing is in flight then.
        """
        directory = sequence.directory
        absent = directory.off_device()
        if self.mover.in_place:  # what lies on the host is attended there
            absent = absent[directory.host[0, absent] == ABSENT]
        if last is not None:
            absent = absent[(absent == 0) | (absent >= directory.num_columns - last)]
        if len(absent) == 0:
            return
        growth = num_columns(num_expected) + 1
        self._make_room((len(absent) + growth) * directory.num_layers, only_idle=True)
        room = self.mover.device.num_free // directory.num_layers - growth
        if room < len(absent):
            staging = -(-2 * self.stream.segment_slots // directory.num_layers)
            room = max(0, room - staging - self.block_columns)
        chosen, rest = absent[:room], absent[room:]
        if self.mover.in_place:
            started = arrivals.start(self.mover, sequence, chosen, self.mover.device)
            assert started, "room on the device was counted before"
        else:
            self._lift(sequence, chosen, arrivals)
        self._bring_to_host(arrivals, sequence, rest[directory.host[0, rest] == ABSENT])
        if not self.mover.in_place:
            arrivals.wait_all()  # copies to the device start from the host: they must not overtake the disk

    def _lift(self, sequence: Sequence, columns: NDArray[np.intp], arrivals: Arrivals) -> None:
        """Bring columns to a GPU by way of the host, as many at a time as the host has room for."""
        host = sequence.directory.host
        held = columns[host[0, columns] != ABSENT]
        self.mover.promote_to_device(sequence, held)
        left = columns[host[0, columns] == ABSENT]
        while len(left):
            self._bring_to_host(arrivals, sequence, left)
            arrivals.wait_all()
            landed = left[sequence.directory.host[0, left] != ABSENT]
            if len(landed) == 0 or not self.mover.promote_to_device(sequence, landed):
                return  # what is left is streamed
            left = left[len(landed) :]
            if len(left):
                self.mover.lane.host_waits()
                self.mover.drop_host(sequence, landed)

    def _bring_to_host(self, arrivals: Arrivals, sequence: Sequence, columns: NDArray[np.intp]) -> None:
        num_layers = sequence.directory.num_layers
        self._make_host_room(len(columns) * num_layers)
        staging = 0 if self.mover.in_place or self.stream.is_open else 2 * self.stream.segment_slots
        room = max(0, self.mover.host.num_free - staging) // num_layers
        started = arrivals.start(self.mover, sequence, columns[:room], self.mover.host)
        assert started, "room on the host was counted before"

    def prepare(self, sequence: Sequence, num_tokens: int, *, reads_all: bool = True) -> None:
        """Before a pass: device slots for every column up to `num_tokens`; staging if anything is away that the
        pass will read.

        Raises:
            CapacityError: no tier can take what has to leave the device.
        """
        directory = sequence.directory
        wanted = num_columns(num_tokens) - directory.num_columns
        if wanted > 0:
            slots = self._take(wanted * directory.num_layers)
            new = np.arange(directory.num_columns, directory.num_columns + wanted)
            try:
                directory.grow(directory.num_columns + wanted)
                directory.put_device(new, slots.reshape(directory.num_layers, wanted))
            except BaseException:
                self.mover.device.give(slots)
                raise
        if not reads_all:
            self.stream.close()
        elif directory.num_away(in_place=self.mover.in_place) and not self.stream.is_open:
            self._open_stream(sequence)

    def select_from(self, sequence: Sequence, num_columns: int, num_slots: int, at_least: int) -> Abstracts:
        """Abstracts of the first `num_columns` columns, and room to promote `num_slots` leaves, or `at_least` some.

        Raises:
            CapacityError: the host, or on a GPU the device, has no room for them.
            DamagedColumns: columns without abstracts could not be read back from disk.
        """
        found = self.promotion.open(sequence, num_columns, num_slots, at_least)
        if isinstance(found, MemoryTier):
            raise CapacityError(self._too_small("device" if found is self.mover.device else "host"))
        return found

    def _open_stream(self, sequence: Sequence) -> None:
        staging = 2 * self.stream.segment_slots
        self._make_room(staging)
        if not self.mover.in_place:
            self._clear_host(staging, sequence)
        if not self.stream.open():
            raise CapacityError(self._too_small("host"))

    def flush(self, sequence: Sequence, at_least: int = 1) -> bool:
        """Write full columns that are not on disk yet, if there are `at_least` so many; False when refused.

        While a turn goes on, up to the last whole node: a record that begins with a node has low-bit keys in pieces
        of whole nodes, so that a resume reads one piece where it would read two.
        """
        disk = self.mover.disk
        if not sequence.durable or disk is None:
            return False
        if sequence.num_full - sequence.num_written < at_least:
            return True
        if not disk.is_writable:
            return False
        done = True
        self._being_written.add(sequence.id)
        try:
            step = NODE_COLUMNS if at_least > NODE_COLUMNS else 1
            stop = sequence.num_full // step * step
            while done and sequence.num_written < stop:
                columns = self._next_extent(sequence, stop)
                sections = self.promotion.sections(sequence, columns)
                done = self.mover.write_extent(sequence, columns, sections)
        finally:
            self._being_written.discard(sequence.id)
        for evicted in disk.take_evicted():  # their places are stale: what memory holds of them goes too
            if evicted in self.sequences:
                self.release(self.sequences[evicted])
        return done

    def _next_extent(self, sequence: Sequence, stop: int) -> range:
        """Columns to write at once: all up to `stop`, or as many as a GPU's can pass through the host together."""
        start = sequence.num_written
        stop = min(stop, start + MAX_EXTENT_COLUMNS)
        exact = sequence.num_exact // LEAF_TOKENS
        if start < exact < stop:  # an extent has one provenance
            stop = exact
        if self.mover.in_place:
            return range(start, stop)
        num_layers = sequence.directory.num_layers
        missing = int((sequence.directory.host[0, start:stop] == ABSENT).sum())
        self._clear_host(missing * num_layers, sequence)
        room = self.mover.host.num_free // num_layers
        return range(start, stop if room >= missing else min(stop, start + max(1, room)))

    def shorten(self, sequence: Sequence, num_tokens: int) -> None:
        """Forget tokens from `num_tokens` on (an edit, a damaged leaf); nothing may be in flight."""
        self.stream.reset()
        gone = np.arange(num_columns(num_tokens), sequence.directory.num_columns)
        self.mover.drop_device(sequence, gone)
        self.mover.drop_host(sequence, gone)
        self.promotion.shorten(sequence, num_tokens // LEAF_TOKENS)
        sequence.shorten(num_tokens)

    def release(self, sequence: Sequence) -> None:
        """Give up every copy in memory and forget the sequence."""
        self.shorten(sequence, 0)
        self.promotion.release(sequence)
        self.sequences.pop(sequence.id, None)
        self.expectations.fulfilled(sequence.id)

    def _take(self, num_slots: int) -> NDArray[np.int32]:
        self._make_room(num_slots)
        slots = self.mover.device.take(num_slots)
        assert slots is not None, "room was made before"
        return slots

    def _make_room(self, num_slots: int, *, only_idle: bool = False) -> None:
        """Demote until `num_slots` device slots are free; `only_idle`: as far as idle sequences allow.

        Raises:
            CapacityError: not even all demotable columns make enough room, or nowhere takes them.
        """
        device = self.mover.device
        if device.num_free < num_slots and not self.promotion.promoted.serves(self._active):
            self.promotion.give_way(self._active, num_slots - device.num_free, device)
        if device.num_free >= num_slots:
            return
        refused = None
        try:
            self._demote_for(num_slots, only_idle=only_idle)
        except CapacityError as error:
            refused = error
        if only_idle:
            return
        if device.num_free < num_slots:
            self.promotion.give_way(self._active, num_slots - device.num_free, device)
        if device.num_free < num_slots:
            raise refused or CapacityError(self._too_small("device"))

    def _demote_for(self, num_slots: int, *, only_idle: bool) -> None:
        """Demote whole columns until `num_slots` device slots are free, as far as there are any."""
        num_layers = self.mover.device.shape.num_layers
        missing = num_slots - self.mover.device.num_free
        candidates = [
            Candidate(
                s.id,
                self._demotable(s),
                s.last_used,
                is_active=s is self._active,
                expected=self.expectations.of(s.id),
                worth=self._worth_of_written(s),
            )
            for s in self.sequences.values()
            if not (only_idle and s is self._active)
        ]
        for owner, columns in self.placement.victims(candidates, -(-missing // num_layers)):
            if owner in self.sequences:  # writing one idle sequence may have evicted another
                self._demote(self.sequences[owner], columns)

    def _demotable(self, sequence: Sequence) -> NDArray[np.intp]:
        """Columns that may leave the device: all of an idle sequence, the full ones of the active."""
        columns = sequence.directory.on_device()
        return columns[columns < sequence.num_full] if sequence is self._active else columns

    def _demote(self, sequence: Sequence, columns: NDArray[np.intp]) -> None:
        """Take columns off the device, keeping a copy below."""
        self._make_host_room(len(columns) * sequence.directory.num_layers)
        columns = columns[
            columns < sequence.directory.num_columns
        ]  # it may itself have given way on the host
        full = columns[columns < sequence.num_full]
        room = self.mover.host.num_free
        if not self.mover.in_place and not self.stream.is_open:
            room -= 2 * self.stream.segment_slots  # streaming will need to land on the host
        fits = max(0, room) // sequence.directory.num_layers
        self.mover.demote_to_host(sequence, full[:fits])
        homeless = full[fits:][sequence.directory.host[0, full[fits:]] == ABSENT]
        if len(homeless) and homeless.max() >= sequence.num_written:
            self.flush(sequence)
            homeless = homeless[homeless >= sequence.num_written]
            if len(homeless) and sequence is self._active:
                raise CapacityError(self._too_small("host"))
            if len(homeless):  # no disk to go to: evicted from there on, and recomputed when needed
                first = int(homeless.min())
                self._evict(sequence, first, "no tier below has room for it")
                full = full[full < first]
        self.mover.drop_device(sequence, full)
        self.moves.note(sequence.id, "demoted", len(full), "the device limit was reached")
        if len(full) < len(columns):  # the unfinished column of an idle sequence: recomputed when needed
            self.shorten(sequence, sequence.num_full * LEAF_TOKENS)

    def _make_host_room(self, num_slots: int) -> None:
        """Drop clean host copies of idle sequences, in the order of placement, until enough is free."""
        host = self.mover.host
        order = {s.id: (self.expectations.of(s.id), s.last_used) for s in self.sequences.values()}
        for sequence in sorted(self.sequences.values(), key=lambda s: order[s.id]):
            if host.num_free >= num_slots:
                return
            if sequence is self._active or sequence.id in self._being_written:
                continue
            if sequence.durable:
                self.flush(sequence)
                held = sequence.directory.on_host()
                self._drop(sequence, held[held < sequence.num_written], _HOST_FULL)
            elif len(held := sequence.directory.on_host()):
                self._evict(sequence, int(held.min()), f"{_HOST_FULL}, and it has no disk")
        if host.num_free < num_slots:
            self.promotion.give_way(self._active, num_slots - host.num_free, host)

    def _make_host_bytes(self, num_bytes: int, owner: Sequence) -> None:
        """Free host memory for what is not a column, at the cost of clean copies."""
        self._clear_host(-(-num_bytes // self.mover.host.shape.leaf_bytes), owner)

    def _clear_host(self, num_slots: int, owner: Sequence) -> None:
        """Make host room at the cost of clean copies, those of `owner` last."""
        self._make_host_room(num_slots)
        missing = num_slots - self.mover.host.num_free
        if missing > 0:
            self._drop_own(owner, missing, _HOST_FULL)

    def _drop_own(self, owner: Sequence, num_slots: int, why: str) -> None:
        """Give up `num_slots` host slots of clean copies, as far as there are any: what `own_order` names first."""
        held = owner.directory.on_host()
        clean = held[held < owner.num_written]
        clean = (
            np.roll(clean, -1) if len(clean) and clean[0] == 0 else clean
        )  # every step reads the first column
        order = own_order(clean, self._worth_of_written(owner))
        self._drop(owner, order[: -(-num_slots // owner.directory.num_layers)], why)

    def _worth_of_written(self, sequence: Sequence) -> NDArray[np.float32]:
        """Columns that are not on disk yet have no score: those of a GPU are written in order, through the host."""
        return self.worth_of(sequence)[: sequence.num_written]

    def _drop(self, sequence: Sequence, columns: NDArray[np.intp], why: str) -> None:
        self.mover.drop_host(sequence, columns)
        self.moves.note(sequence.id, "dropped", len(columns), why)

    def _evict(self, sequence: Sequence, first: int, why: str) -> None:
        """Forget columns from `first` on: nothing below holds them."""
        self.moves.note(sequence.id, "evicted", sequence.num_full - first, why)
        self.shorten(sequence, first * LEAF_TOKENS)

    def _too_small(self, tier: str) -> str:
        limit = self.mover.device if tier == "device" else self.mover.host
        mib = limit.ledger[limit.tier].capacity / (1 << 20)
        return (
            f"the conversation no longer fits: the {tier} limit of {mib:.0f} MiB is full and nothing below it can "
            f"take more; raise --{tier}-budget or --disk-budget, or free disk space"
        )


def smallest_device_slots(num_layers: int) -> int:
    """Slots without which not even one new column and two one-leaf segments fit."""
    return 3 * num_layers + 2
