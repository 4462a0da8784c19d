"""What a reader of leaves asks for and gets back: places, requests, faults, and the handle of a read in flight.

Knows leaves; neither bytes nor files.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class LeafPlace(NamedTuple):
    """Where a leaf (all its layers) lies. Neighbours in a record differ by one in `leaf` only."""

    segment: int
    record: int
    leaf: int

    def precedes(self, other: LeafPlace) -> bool:
        """Whether `other` is the next leaf of the same record, so that one read brings both."""
        return self.segment == other.segment and self.record == other.record and self.leaf + 1 == other.leaf


class LeafRead(NamedTuple):
    """Wanted: `num_leaves` adjacent leaves of one layer, from `place` on, into `out`.

    `out` is writable and holds exactly num_leaves * leaf_bytes; it must not be touched until the transfer is
    done. Page-aligned memory is read into directly.
    """

    place: LeafPlace
    layer: int
    num_leaves: int
    out: memoryview


class PieceRead(NamedTuple):
    """Wanted: `num_pieces` adjacent pieces, from `first` on, of section `kind` of the record that holds `place`.

    Pieces are counted through all runs of the section (see Cut); `out` is writable and holds just their bytes.
    A section in one piece is piece 0.
    """

    place: LeafPlace
    kind: int
    first: int
    num_pieces: int
    out: memoryview


DAMAGED = "damaged on disk"


class LeafFault(NamedTuple):
    """A leaf, or a piece, that did not arrive: `request` indexes the requests, `leaf` counts from its first."""

    request: int
    leaf: int
    reason: str


class Transfer:
    """Handle of one `Store.read` or `Store.read_pieces` in flight."""

    def __init__(self, num_jobs: int, faults: Sequence[LeafFault] = ()) -> None:
        """`faults`: leaves that could not even be asked for."""
        self._left = num_jobs
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._faults = list(faults)
        self._is_cancelled = False
        if num_jobs == 0:
            self._finished.set()

    def done(self) -> bool:
        """Whether nothing of it will touch memory any more."""
        return self._finished.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks without the GIL until done or `timeout` seconds passed; returns done()."""
        return self._finished.wait(timeout)

    def cancel(self) -> None:
        """Skips what has not started; still wait for what has before reusing the buffers."""
        self._is_cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._is_cancelled

    @property
    def result(self) -> list[LeafFault]:
        """Leaves that did not arrive, empty when all did. Call when done."""
        assert self.done(), "the transfer is still in flight"
        return self._faults

    def part_done(self, faults: list[LeafFault]) -> None:
        """One job of it is over (called by the job)."""
        with self._lock:
            self._faults += faults
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._finished.set()
