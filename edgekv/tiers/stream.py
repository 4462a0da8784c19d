"""Attention over leaves that do not fit: streamed through two staging segments of the device pool.

While one segment is attended the next is on its way, over layer ends and on to the next token. A segment is
at most `segment_slots` leaves of one layer; a layer need not fit. Leaves on disk are read straight into the
staging slots where the device is the CPU, else into a host segment and copied from there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgekv.cache.directory import ABSENT
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.tiers.arrivals import DamagedColumns

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from edgekv.cache.directory import Directory
    from edgekv.cache.sequence import Sequence
    from edgekv.tiers.disk import LayerRead
    from edgekv.tiers.mover import Mover


@dataclass(frozen=True, slots=True)
class _Segment:
    """Columns of one layer that travel together, all from disk or all from host."""

    layer: int
    columns: NDArray[np.intp]
    from_disk: bool


@dataclass(slots=True)
class _Buffer:
    """One staging segment: device slots, host slots to land in first (GPU only), and what is under way."""

    device_slots: NDArray[np.int32]
    host_slots: NDArray[np.int32] | None
    segment: _Segment | None = None
    read: LayerRead | None = None


class SegmentStream:
    """Serves the segments of each layer in turn; the decoder asks for the layers in order, pass after pass."""

    def __init__(self, mover: Mover, segment_slots: int) -> None:
        self._mover = mover
        self.segment_slots = segment_slots
        self._idle: list[_Buffer] = []
        self._issued: deque[_Buffer] = deque()
        self._plan: list[_Segment] = []
        self._per_layer: list[int] = []
        self._next = 0
        self._sequence: Sequence | None = None
        self._version = -1

    @property
    def is_open(self) -> bool:
        """Whether the staging slots are taken."""
        return bool(self._idle or self._issued)

    def open(self) -> bool:
        """Take the staging slots; False (and nothing taken) when a pool has no room for them."""
        for _ in range(2):
            device_slots = self._mover.device.take(self.segment_slots)
            if device_slots is None:
                self.close()
                return False
            buffer = _Buffer(device_slots, None)
            self._idle.append(buffer)
            if not self._mover.in_place:
                buffer.host_slots = self._mover.host.take(self.segment_slots)
                if buffer.host_slots is None:
                    self.close()
                    return False
        return True

    def close(self) -> None:
        """Wait for what is in flight and give the staging slots back."""
        self.reset()
        for buffer in self._idle:
            self._mover.device.give(buffer.device_slots)
            if buffer.host_slots is not None:
                self._mover.host.give(buffer.host_slots)
        self._idle.clear()

    def reset(self) -> None:
        """Forget the plan; afterwards nothing is in flight."""
        for buffer in self._issued:
            if buffer.read is not None:
                buffer.read.wait()
                buffer.read = None
        self._mover.lane.host_waits()
        self._idle.extend(self._issued)
        self._issued.clear()
        self._plan, self._per_layer, self._version, self._sequence = [], [], -1, None

    def begin_pass(self, sequence: Sequence) -> None:
        """Plan a pass over all layers, or go on with the plan when nothing moved since the last one."""
        if sequence is self._sequence and sequence.directory.version == self._version:
            return
        self.reset()
        self._plan = self._planned(sequence)
        self._per_layer = [0] * sequence.directory.num_layers
        for segment in self._plan:
            self._per_layer[segment.layer] += 1
        self._sequence, self._version, self._next = sequence, sequence.directory.version, 0
        if self._plan:
            assert self.is_open, "columns to stream and no staging segments"
            self._issue()
            self._issue()

    def segments(self, layer: int) -> Iterator[tuple[torch.Tensor, int]]:
        """(device slots int32, number of tokens) of each segment of `layer`, as they land.

        Raises:
            DamagedColumns: leaves on disk could not be read or verified.
        """
        for _ in range(self._per_layer[layer]):
            buffer = self._issued[0]
            segment = buffer.segment
            assert segment is not None
            assert segment.layer == layer, "layers asked for out of order"
            slots = self._land(buffer, segment)
            yield slots, len(slots) * LEAF_TOKENS
            self._idle.append(self._issued.popleft())
            self._issue()

    def _planned(self, sequence: Sequence) -> list[_Segment]:
        directory = sequence.directory
        away = directory.off_device()
        held = directory.host[0, away] != ABSENT
        sources = [(away[~held], True)]
        if not self._mover.in_place:
            sources.append((away[held], False))
        size = self.segment_slots
        return [
            _Segment(layer, columns[start : start + size], from_disk)
            for layer in range(directory.num_layers)
            for columns, from_disk in sources
            for start in range(0, len(columns), size)
        ]

    def _issue(self) -> None:
        """Start the next segment of the plan; after its last one, the first again for the next token."""
        assert self._sequence is not None
        directory = self._sequence.directory
        buffer = self._idle.pop()
        try:
            self._fill(buffer, self._plan[self._next % len(self._plan)], directory)
        except BaseException:
            self._idle.append(buffer)
            self._version = -1  # a segment is missing: the next pass plans anew
            raise
        self._next += 1
        self._issued.append(buffer)

    def _fill(self, buffer: _Buffer, segment: _Segment, directory: Directory) -> None:
        """Start reading or copying a segment into the buffer."""
        buffer.segment = segment
        count = len(segment.columns)
        if segment.from_disk:
            assert self._mover.disk is not None
            if buffer.host_slots is not None:
                self._mover.lane.host_waits()  # the copy that started from these slots must have left them
            tier = self._mover.device if buffer.host_slots is None else self._mover.host
            slots = buffer.device_slots if buffer.host_slots is None else buffer.host_slots
            buffer.read = self._mover.disk.read(
                directory.places, segment.layer, segment.columns, slots[:count], tier
            )
        else:
            source = directory.host[segment.layer, segment.columns]
            self._mover.copy_slots(self._mover.host, source, self._mover.device, buffer.device_slots[:count])

    def _land(self, buffer: _Buffer, segment: _Segment) -> torch.Tensor:
        """Wait for a segment; its device slots."""
        count = len(segment.columns)
        if buffer.read is not None:
            damaged = buffer.read.wait()
            buffer.read = None
            if len(damaged):
                raise DamagedColumns(int(damaged.min()), len(damaged))
            if buffer.host_slots is not None:
                self._mover.copy_slots(
                    self._mover.host,
                    buffer.host_slots[:count],
                    self._mover.device,
                    buffer.device_slots[:count],
                )
        self._mover.lane.computation_waits()
        return torch.from_numpy(buffer.device_slots[:count]).to(self._mover.device.pool.device)
