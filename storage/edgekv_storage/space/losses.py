"""What was forgotten before its time: whose, how much, when and why, so that a person can be told.

Knows numbers and reasons; keeps them in memory, index.db keeps them over a restart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

QUOTA = "the disk limit was reached"
FLOOR = "the drive was nearly full"
LOWERED = "the disk limit was lowered"
DAMAGE = "it was damaged on disk"
REASONS = (QUOTA, FLOOR, LOWERED, DAMAGE)


@dataclass(frozen=True, slots=True)
class Loss:
    """KV of a sequence that is gone and will be computed again when asked for; `at_ns` since 1970."""

    sequence_id: bytes
    why: str
    num_tokens: int
    num_bytes: int
    at_ns: int


class Losses:
    """One entry per sequence and reason, added up. Callers hold the catalog's lock."""

    def __init__(self, known: Iterable[Loss] = ()) -> None:
        self._known = {(loss.sequence_id, loss.why): loss for loss in known}
        self.changed: set[bytes] = set()
        """Sequences whose rows in the index are out of date."""

    def add(self, sequence_id: bytes, why: str, num_tokens: int, num_bytes: int) -> None:
        """Counts a loss."""
        old = self._known.get((sequence_id, why)) or Loss(sequence_id, why, 0, 0, 0)
        tokens, size = old.num_tokens + num_tokens, old.num_bytes + num_bytes
        new = replace(old, num_tokens=tokens, num_bytes=size, at_ns=time.time_ns())
        self._known[sequence_id, why] = new
        self.changed.add(sequence_id)

    def of(self, sequence_id: bytes) -> list[Loss]:
        """Losses of a sequence, the latest first."""
        found = (self._known.get((sequence_id, why)) for why in REASONS)
        return sorted((loss for loss in found if loss is not None), key=lambda loss: -loss.at_ns)

    def clear(self, sequence_id: bytes) -> None:
        """It was computed again, or its conversation is gone."""
        for why in REASONS:
            if self._known.pop((sequence_id, why), None) is not None:
                self.changed.add(sequence_id)
