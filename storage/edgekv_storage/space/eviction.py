"""What to give up when the disk is full: the bytes whose loss costs the least waiting later. No I/O.

Losing a leaf costs the seconds its prefill took, times the chance that it is asked for again. Later leaves cost
more, since each attends to everything before it; but they are useless without their prefix, so only tails go:
a segment together with every segment that holds leaves which follow on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv_storage.segments.format import LEAF_TOKENS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_FRESH_SECONDS = 3600.0  # within it, uses count as equally recent


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Seconds to compute tokens again. The defaults are one small model on two CPU cores; only ratios matter."""

    linear_s: float = 7.0e-4  # per token
    quadratic_s: float = 1.0e-7  # per token and token before it

    def seconds(self, start: int, stop: int) -> float:
        """For tokens `start` to `stop`, with everything before them there."""
        return self.linear_s * (stop - start) + self.quadratic_s * (stop * stop - start * start) / 2

    def of_leaf(self, depth: int) -> float:
        """For the leaf that has `depth` leaves before it."""
        return self.seconds(depth * LEAF_TOKENS, (depth + 1) * LEAF_TOKENS)


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment as eviction sees it; `followers` are segments with leaves that are useless without it."""

    segment: int
    sequence_id: bytes
    num_bytes: int
    seconds: float  # to compute its live leaves again
    used_ns: int
    followers: frozenset[int] = field(default_factory=frozenset)


def worth(piece: Piece, now_ns: int) -> float:
    """Seconds expected to be saved by keeping a piece: how soon something is used again falls with its age."""
    age = max(0, now_ns - piece.used_ns) / 1e9
    return piece.seconds * _FRESH_SECONDS / (_FRESH_SECONDS + age)


def choose(pieces: Iterable[Piece], needed_bytes: int, keep: Collection[bytes] = ()) -> list[int]:
    """Segments to give up, `needed_bytes` in all or more; empty where even all of them are not enough.

    Whole tails, cheapest first: worth lost per byte that is needed. Ages count from the latest use of any
    piece, not from the clock, which may jump.
    """
    left = {piece.segment: piece for piece in pieces if piece.sequence_id not in keep}
    if needed_bytes <= 0 or sum(p.num_bytes for p in left.values()) < needed_bytes:
        return []
    now_ns = max(piece.used_ns for piece in left.values())
    values = {segment: worth(piece, now_ns) for segment, piece in left.items()}
    tails = {segment: _tail(left, segment) for segment in left}
    chosen: list[int] = []
    while needed_bytes > 0:
        best = min(tails, key=lambda s: _price(left, values, tails[s], needed_bytes))
        gone = tails[best]
        needed_bytes -= sum(left[s].num_bytes for s in gone)
        chosen += sorted(gone)
        for segment in gone:
            del left[segment], tails[segment]
        for segment in tails:
            tails[segment] -= gone
    return chosen


def _price(
    left: Mapping[int, Piece], values: Mapping[int, float], tail: Collection[int], needed_bytes: int
) -> tuple[float, int]:
    """Worth lost per useful byte; of equal ones the longest unused goes."""
    useful = min(needed_bytes, sum(left[s].num_bytes for s in tail))
    return sum(values[s] for s in tail) / max(1, useful), max(left[s].used_ns for s in tail)


def _tail(pieces: Mapping[int, Piece], segment: int) -> set[int]:
    """The segment and everything that follows on it."""
    found, open_ends = {segment}, [segment]
    while open_ends:
        for follower in pieces[open_ends.pop()].followers:
            if follower in pieces and follower not in found:
                found.add(follower)
                open_ends.append(follower)
    return found
