"""The tree of one sequence's leaves, from index rows alone: which are of use, how deep, in which segment.

Knows rows and places; reads nothing. A leaf is of use when it is the newest of its key, not damaged, and
everything before it is of use too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv_storage.segments.format import LEAF_TOKENS, NO_PARENT
from edgekv_storage.space.eviction import Piece
from edgekv_storage.store.transfer import LeafPlace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from edgekv_storage.segments.segment import Segment
    from edgekv_storage.space.eviction import PrefillCost
    from edgekv_storage.store.index import RecordRow


@dataclass(frozen=True, slots=True)
class LeafRange:
    """Adjacent useful leaves of one record."""

    record: int
    first: int
    count: int


class Outline:
    """Computed once; stale after the next append, damage or eviction."""

    def __init__(self, rows: Iterable[RecordRow], dead: Collection[LeafPlace]) -> None:
        """`rows` of one sequence, in the order they were written."""
        self._rows = list(rows)
        self._place: dict[bytes, LeafPlace] = {}
        self._parent: dict[bytes, bytes] = {}
        for row in self._rows:
            parent = row.parent
            for leaf, key in enumerate(row.keys):
                place = LeafPlace(row.segment, row.number, leaf)
                if place not in dead:
                    self._place[key] = place
                    self._parent[key] = parent
                parent = key
        self.depth = self._depths()
        """Leaves before each useful leaf, by key."""

    def _depths(self) -> dict[bytes, int]:
        depth: dict[bytes, int] = {}
        lost: set[bytes] = set()
        for key in self._place:
            chain: list[bytes] = []
            at = key
            while at in self._place and at not in depth and at not in lost and len(chain) <= len(self._place):
                chain.append(at)
                at = self._parent[at]
            base = -1 if at == NO_PARENT else depth.get(at)
            for link in reversed(chain):
                if base is None:
                    lost.add(link)
                else:
                    base += 1
                    depth[link] = base
        return depth

    def rows_in(self, segment: int) -> list[RecordRow]:
        """Rows of a segment."""
        return [row for row in self._rows if row.segment == segment]

    def useful(self, segment: int) -> list[LeafRange]:
        """Useful leaves of a segment, in order."""
        found: list[LeafRange] = []
        for row in self.rows_in(segment):
            start: int | None = None
            for leaf in range(len(row.keys) + 1):
                is_useful = leaf < len(row.keys) and self._is_useful(row, leaf)
                if is_useful and start is None:
                    start = leaf
                elif not is_useful and start is not None:
                    found.append(LeafRange(row.number, start, leaf - start))
                    start = None
        return found

    def _is_useful(self, row: RecordRow, leaf: int) -> bool:
        key = row.keys[leaf]
        return key in self.depth and self._place[key] == (row.segment, row.number, leaf)

    def live_share(self, segment: Segment) -> float:
        """Part of a segment's bytes that is of use, 0 to 1."""
        of_segment = {row.number: row for row in self.rows_in(segment.header.segment)}
        live = 0.0
        for part in self.useful(segment.header.segment):
            row = of_segment[part.record]
            live += row.entry.record_bytes * part.count / len(row.keys)
        return live / max(1, segment.file_bytes)

    def num_tokens(self, segments: Collection[int]) -> int:
        """Tokens whose useful leaves lie in the segments."""
        return LEAF_TOKENS * sum(self._place[key].segment in segments for key in self.depth)

    def pieces(self, segments: Sequence[Segment], cost: PrefillCost) -> list[Piece]:
        """The segments as eviction sees them."""
        seconds = {s.header.segment: 0.0 for s in segments}
        followers: dict[int, set[int]] = {s.header.segment: set() for s in segments}
        for key, depth in self.depth.items():
            here = self._place[key].segment
            seconds[here] += cost.of_leaf(depth)
            before = self._place.get(self._parent[key])
            if before is not None and before.segment != here:
                followers[before.segment].add(here)
        return [
            Piece(
                s.header.segment,
                s.header.sequence_id,
                s.live_bytes,
                seconds[s.header.segment] if s.seal is not None else _guess(s, cost),
                s.used_ns,
                frozenset(followers[s.header.segment]),
            )
            for s in segments
        ]


def _guess(segment: Segment, cost: PrefillCost) -> float:
    """Of a segment that cannot be read now (encrypted, and encryption is off): as if it began a sequence."""
    layout = segment.header.layout
    num_leaves = segment.file_bytes // (layout.num_layers * layout.leaf_bytes)
    return cost.seconds(0, num_leaves * LEAF_TOKENS)
