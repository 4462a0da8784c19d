"""What lies where, in memory: segments, and per sequence the keys of its leaves.

Knows no files and does no I/O; the store fills it. Callers hold its `lock` around every call.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv_storage.transfer import LeafPlace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgekv_storage.format import Entry
    from edgekv_storage.record import RecordTables
    from edgekv_storage.segment import Segment


@dataclass(slots=True)
class Known:
    """A record whose keys are known; its tables are read when first needed."""

    entry: Entry
    keys: list[bytes]
    tables: RecordTables | None = None


class Catalog:
    """Segments of every model; leaves of the sequences that were asked for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.segments: dict[int, Segment] = {}
        self.dead: set[LeafPlace] = set()
        self.next_segment = 1  # never given twice: a stale place must not lead into another sequence
        self._of_sequence: dict[bytes, list[int]] = {}
        self._leaves: dict[bytes, dict[bytes, LeafPlace]] = {}
        self._records: dict[tuple[int, int], Known] = {}
        self._latest_use = 0

    @property
    def live_bytes(self) -> int:
        """Bytes of all segments, footers still to be written included."""
        return sum(segment.live_bytes for segment in self.segments.values())

    def add_segment(self, segment: Segment) -> None:
        """Makes a segment known; its records are added apart."""
        self.segments[segment.header.segment] = segment
        self.next_segment = max(self.next_segment, segment.header.segment + 1)
        self._latest_use = max(self._latest_use, segment.used_ns)
        self._of_sequence.setdefault(segment.header.sequence_id, []).append(segment.header.segment)

    def segments_of(self, sequence_id: bytes) -> list[Segment]:
        """Oldest first."""
        return [self.segments[i] for i in sorted(self._of_sequence.get(sequence_id, ()))]

    def sequences(self) -> list[bytes]:
        """Every sequence, the least recently used (appended to, looked up) first."""
        return sorted(self._of_sequence, key=self._last_use)

    def _last_use(self, sequence_id: bytes) -> tuple[int, int]:
        """When, and for equal times (copied files) how late its newest segment was begun."""
        ids = self._of_sequence[sequence_id]
        return max(self.segments[i].used_ns for i in ids), max(ids)

    def touch(self, sequence_id: bytes, now_ns: int) -> Segment | None:
        """Notes a use; returns the sequence's newest segment, None where it has none."""
        ids = self._of_sequence.get(sequence_id)
        if not ids:
            return None
        self._latest_use = max(now_ns, self._latest_use + 1)  # a clock set back must not reorder them
        newest = self.segments[max(ids)]
        newest.used_ns = self._latest_use
        return newest

    def is_loaded(self, sequence_id: bytes) -> bool:
        """Whether the sequence's leaves are known."""
        return sequence_id in self._leaves

    def set_loaded(self, sequence_id: bytes) -> None:
        """From now on the sequence's leaves are complete."""
        self._leaves.setdefault(sequence_id, {})

    def add_record(self, segment: Segment, number: int, known: Known) -> list[LeafPlace]:
        """Publishes a record's leaves; a key seen before now leads to the newer place."""
        leaves = self._leaves.setdefault(segment.header.sequence_id, {})
        segment_id = segment.header.segment
        self._records[segment_id, number] = known
        places = [LeafPlace(segment_id, number, leaf) for leaf in range(len(known.keys))]
        for key, place in zip(known.keys, places, strict=True):
            if place not in self.dead:
                leaves[key] = place
        return places

    def record(self, segment: int, number: int) -> Known | None:
        """None when it was forgotten meanwhile."""
        return self._records.get((segment, number))

    def find(self, sequence_id: bytes, keys: Sequence[bytes]) -> list[LeafPlace]:
        """Places of the longest prefix of `keys` that is present."""
        leaves = self._leaves.get(sequence_id, {})
        places = []
        for key in keys:
            place = leaves.get(key)
            if place is None:
                break
            places.append(place)
        return places

    def mark_dead(self, places: Iterable[LeafPlace]) -> list[LeafPlace]:
        """Makes leaves unfindable; returns those that were alive."""
        killed = []
        for place in places:
            known = self._records.get(place[:2])
            if place in self.dead or known is None:
                continue
            self.dead.add(place)
            killed.append(place)
            sequence_id = self.segments[place.segment].header.sequence_id
            leaves = self._leaves.get(sequence_id, {})
            key = known.keys[place.leaf]
            if leaves.get(key) == place:
                del leaves[key]
        return killed

    def drop_sequence(self, sequence_id: bytes) -> list[Segment]:
        """Forgets a sequence; returns the segments to delete."""
        gone = self.segments_of(sequence_id)
        ids = {segment.header.segment for segment in gone}
        for segment_id in ids:
            del self.segments[segment_id]
        self._of_sequence.pop(sequence_id, None)
        self._leaves.pop(sequence_id, None)
        self._records = {key: known for key, known in self._records.items() if key[0] not in ids}
        self.dead = {place for place in self.dead if place.segment not in ids}
        return gone
