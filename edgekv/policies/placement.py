"""Which columns leave the device when room is needed.

Idle sequences go first: those that a hint calls done, then the least recently used, last those that a hint expects
back soon (Continuum, arXiv 2511.02230). Each goes from its tail (its head is what a later request can reuse).
The active sequence gives what its method of selection found to be worth least (H2O, arXiv 2306.14048), or its
oldest columns: under exact attention every column is read each step, so which ones stay changes no byte count, and
its newest ones are still being written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekv.cache.expectations import Expected

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Candidate:
    """Columns of one sequence that could leave: ascending, pinned ones excluded.

    `worth[c]`: attention that column c has had, float32, of the first ones; the others have no score.
    """

    sequence_id: bytes
    columns: NDArray[np.intp]
    last_used: int
    is_active: bool
    expected: Expected = Expected.UNKNOWN
    worth: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass(frozen=True, slots=True)
class Placement:
    """Expected last, then least recently used, goes first, tail first; the active last, in `own_order`."""

    def victims(self, candidates: list[Candidate], num_columns: int) -> list[tuple[bytes, NDArray[np.intp]]]:
        """Columns to demote, by sequence, in the order to demote them; may be fewer than asked."""
        chosen: list[tuple[bytes, NDArray[np.intp]]] = []
        for candidate in sorted(candidates, key=lambda c: (c.is_active, c.expected, c.last_used)):
            if num_columns <= 0:
                break
            columns = candidate.columns
            order = own_order(columns, candidate.worth) if candidate.is_active else columns[::-1]
            taken = order[:num_columns]
            if len(taken):
                chosen.append((candidate.sequence_id, taken))
                num_columns -= len(taken)
        return chosen


def own_order(columns: NDArray[np.intp], worth: NDArray[np.float32]) -> NDArray[np.intp]:
    """The order in which a sequence in use gives up some of its `columns`: least worth first, then as they stand
    those without a score.
    """
    scores = np.full(len(columns), np.inf, np.float32)
    known = columns < len(worth)
    scores[known] = worth[columns[known]]
    return columns[np.argsort(scores, kind="stable")]
