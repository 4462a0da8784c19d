"""llama.cpp's cache with so many cells in use, without the many minutes it takes to compute them.

The first tokens are computed; behind them copies of their state are put, moved to the positions that follow. Every
cell is visible to the next token and attended: a step takes as long as behind computed ones (docs/measurements.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.bench.peer import LlamaCpp

COMPUTED = 2048
SEQUENCES = 2  # what the peer must be made with: the copies' own, and the one that is measured


@dataclass(slots=True)
class Filling:
    """Grows `peer`'s sequence; `ids` are the text of what is computed."""

    peer: LlamaCpp
    ids: Sequence[int]
    _state: Any = None

    def grow(self, num_tokens: int) -> None:
        """Until the sequence has `num_tokens`, or cut it to so many."""
        peer = self.peer
        if peer.num_tokens > num_tokens:
            peer.shorten(num_tokens)
        if peer.num_tokens < (computed := min(num_tokens, COMPUTED)):
            peer.feed(self.ids[peer.num_tokens : computed])
        while peer.num_tokens < num_tokens:
            if self._state is None:
                self._state = peer.state()
            peer.repeat(self._state, min(COMPUTED, num_tokens - peer.num_tokens))
