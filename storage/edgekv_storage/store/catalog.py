"""What lies where, in memory: segments, and per sequence the keys of its leaves.

Knows no files and does no I/O; the store fills it. Callers hold its `lock` around every call.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv_storage.segments.format import NO_PARENT
from edgekv_storage.store.index import RecordRow
from edgekv_storage.store.transfer import LeafPlace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgekv_storage.segments.format import Entry
    from edgekv_storage.segments.record import RecordTables
    from edgekv_storage.segments.segment import Segment


@dataclass(slots=True)
class Known:
    """A record whose keys are known; its tables are read when first needed."""

    entry: Entry
    keys: list[bytes]
    parent: bytes = NO_PARENT  # key of the leaf before the first one
    tables: RecordTables | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """Leaves `first` to `first + count` of a record of a segment that is gone are now at `place` and on.

    `is_whole`: they were all of the record's.
    """

    record: int
    first: int
    count: int
    place: LeafPlace
    is_whole: bool


class Catalog:
    """Segments of every model; leaves of the sequences that were asked for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.segments: dict[int, Segment] = {}
        self.leaving: dict[int, Segment] = {}  # found no more, and their files could not be removed yet
        self.aside_bytes = 0  # of quarantine/
        self.dead: set[LeafPlace] = set()
        self.next_segment = 1  # never given twice: a stale place must not lead into another sequence
        self._of_sequence: dict[bytes, list[int]] = {}
        self._leaves: dict[bytes, dict[bytes, LeafPlace]] = {}
        self._records: dict[tuple[int, int], Known] = {}
        self._moved: dict[int, list[Moved]] = {}
        self._latest_use = 0
        self.dirty: set[bytes] = set()
        """Sequences of which something may have become useless since compaction last looked."""

    @property
    def live_bytes(self) -> int:
        """Bytes of all files of segments: footers still to be written, and what lies in quarantine/ too."""
        counted = [*self.segments.values(), *self.leaving.values()]
        return sum(segment.live_bytes for segment in counted) + self.aside_bytes

    def add_segment(self, segment: Segment) -> None:
        """Makes a segment known; its records are added apart."""
        self.segments[segment.header.segment] = segment
        self.next_segment = max(self.next_segment, segment.header.segment + 1)
        self._latest_use = max(self._latest_use, segment.used_ns)
        self._of_sequence.setdefault(segment.header.sequence_id, []).append(segment.header.segment)
        self.dirty.add(segment.header.sequence_id)

    def segments_of(self, sequence_id: bytes) -> list[Segment]:
        """Oldest first."""
        return [self.segments[i] for i in sorted(self._of_sequence.get(sequence_id, ()))]

    def files_of(self, sequence_id: bytes) -> list[Segment]:
        """The same, and those whose files could not be removed."""
        leaving = [s for s in self.leaving.values() if s.header.sequence_id == sequence_id]
        return self.segments_of(sequence_id) + leaving

    def sequences(self) -> list[bytes]:
        """Every sequence, the least recently used (appended to, looked up) first."""
        return sorted(self._of_sequence, key=self._last_use)

    def _last_use(self, sequence_id: bytes) -> tuple[int, int]:
        """When, and for equal times (copied files) how late its newest segment was begun."""
        ids = self._of_sequence[sequence_id]
        return max(self.segments[i].used_ns for i in ids), max(ids)

    def touch(self, sequence_id: bytes, now_ns: int, places: Iterable[LeafPlace] = ()) -> list[Segment]:
        """Notes a use of the sequence's newest segment and of those that hold `places`; returns them."""
        ids = self._of_sequence.get(sequence_id)
        if not ids:
            return []
        self._latest_use = max(now_ns, self._latest_use + 1)  # a clock set back must not reorder them
        used = {max(ids), *(place.segment for place in places)}
        touched = [self.segments[segment] for segment in used if segment in self.segments]
        for segment in touched:
            segment.used_ns = self._latest_use
        return touched

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
                if key in leaves:
                    self.dirty.add(segment.header.sequence_id)
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

    def parents(self, sequence_id: bytes) -> set[bytes]:
        """Keys of the leaves in front of each record of a sequence."""
        segments = [(s.header.segment, s.num_records) for s in self.segments_of(sequence_id)]
        spots = ((segment, number) for segment, count in segments for number in range(count))
        return {known.parent for spot in spots if (known := self._records.get(spot)) is not None}

    def mark_dead(self, places: Iterable[LeafPlace]) -> list[LeafPlace]:
        """Makes leaves unfindable, or leads to an older copy where there is one; returns those that were alive."""
        killed = []
        lost: dict[bytes, set[bytes]] = {}
        for place in places:
            known = self._records.get(place[:2])
            if place in self.dead or known is None:
                continue
            self.dead.add(place)
            killed.append(place)
            sequence_id = self.segments[place.segment].header.sequence_id
            self.dirty.add(sequence_id)
            leaves = self._leaves.get(sequence_id, {})
            key = known.keys[place.leaf]
            if leaves.get(key) == place:
                del leaves[key]
                lost.setdefault(sequence_id, set()).add(key)
        for sequence_id, keys in lost.items():
            self._fall_back(sequence_id, keys)
        return killed

    def _fall_back(self, sequence_id: bytes, keys: set[bytes]) -> None:
        """A power loss in mid-compaction may leave a torn copy and its source: the source is found again."""
        leaves = self._leaves[sequence_id]
        for segment in self.segments_of(sequence_id):
            for number in range(segment.num_records):
                known = self._records.get((segment.header.segment, number))
                if known is None or keys.isdisjoint(known.keys):
                    continue
                for leaf, key in enumerate(known.keys):
                    place = LeafPlace(segment.header.segment, number, leaf)
                    if key in keys and place not in self.dead:
                        leaves[key] = place

    def rows_of(self, segment: Segment) -> list[RecordRow] | None:
        """The records of a segment as far as they are known, None where they have to be read first."""
        segment_id = segment.header.segment
        found = []
        for number in range(segment.num_records):
            known = self._records.get((segment_id, number))
            if known is not None:
                found.append(RecordRow(segment_id, number, known.entry, known.keys, known.parent))
        is_whole = segment.is_own or len(found) == segment.num_records - segment.num_damaged
        return found if is_whole else None  # the record of an append in progress does not count yet

    def forward(self, segment: int, moved: list[Moved]) -> None:
        """From now on places in a segment that is about to go lead to where its leaves were copied."""
        self._moved[segment] = moved

    @property
    def has_moved(self) -> bool:
        """Whether any place may lead elsewhere; needs no lock."""
        return bool(self._moved)

    def resolve(self, place: LeafPlace, count: int = 1) -> LeafPlace:
        """Where `count` adjacent leaves are now; the place itself where they were never moved."""
        while place.segment not in self.segments:
            for part in self._moved.get(place.segment, ()):
                inside = place.leaf - part.first
                if part.record == place.record and 0 <= inside <= part.count - count:
                    place = part.place._replace(leaf=part.place.leaf + inside)
                    break
            else:
                break
        return place

    def resolve_whole(self, place: LeafPlace) -> LeafPlace | None:
        """The same, where all of the record was copied: its sections are cut as they were. Else None."""
        while place.segment not in self.segments:
            parts = [p for p in self._moved.get(place.segment, ()) if p.record == place.record and p.is_whole]
            if not parts:
                return None
            place = parts[0].place._replace(leaf=place.leaf)
        return place

    def remove(self, segments: Iterable[Segment]) -> None:
        """Forgets what lies in segments; they stay in `leaving` until their files are removed."""
        ids = set()
        for segment in segments:
            segment_id, sequence_id = segment.header.segment, segment.header.sequence_id
            ids.add(segment_id)
            self.segments.pop(segment_id, None)
            self.leaving[segment_id] = segment
            for number in range(segment.num_records):
                self._records.pop((segment_id, number), None)
            left = [other for other in self._of_sequence.get(sequence_id, ()) if other != segment_id]
            leaves = self._leaves.get(sequence_id, {})
            for key in [key for key, place in leaves.items() if place.segment == segment_id]:
                del leaves[key]
            if left:
                self._of_sequence[sequence_id] = left
            else:
                self._of_sequence.pop(sequence_id, None)
                self._leaves.pop(sequence_id, None)
                self.dirty.discard(sequence_id)
        self.dead = {place for place in self.dead if place.segment not in ids}
