"""Which columns leave the device when room is needed.

Idle sequences go first: those that a hint calls done, then the least recently used, last those that a hint expects
back soon (Continuum, arXiv 2511.02230). Each goes from its tail (its head is what a later request can reuse).
The active sequence gives its oldest columns: under exact attention every column is read each step,
so which ones stay changes no byte count, and its newest ones are still being written. Selection will replace
this order with scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv.cache.expectations import Expected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Candidate:
    """Columns of one sequence that could leave: ascending, pinned ones excluded."""

    sequence_id: bytes
    columns: NDArray[np.intp]
    last_used: int
    is_active: bool
    expected: Expected = Expected.UNKNOWN


@dataclass(frozen=True, slots=True)
class Placement:
    """Expected last, then least recently used, goes first, tail first; the active last, oldest column first."""

    def victims(self, candidates: list[Candidate], num_columns: int) -> list[tuple[bytes, NDArray[np.intp]]]:
        """Columns to demote, by sequence, in the order to demote them; may be fewer than asked."""
        chosen: list[tuple[bytes, NDArray[np.intp]]] = []
        for candidate in sorted(candidates, key=lambda c: (c.is_active, c.expected, c.last_used)):
            if num_columns <= 0:
                break
            order = candidate.columns if candidate.is_active else candidate.columns[::-1]
            taken = order[:num_columns]
            if len(taken):
                chosen.append((candidate.sequence_id, taken))
                num_columns -= len(taken)
        return chosen
