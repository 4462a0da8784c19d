"""What moved between the tiers lately, and why: for people, not for decisions.

Bounded; the engine's thread writes, any thread may read. Knows ids and numbers, moves nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque

from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.stats import Move, MoveKind

MOST_MOVES = 200
JOINED_S = 2.0


class MoveLog:
    """The latest moves; those of the same kind that follow each other closely are one."""

    def __init__(self) -> None:
        self._moves: deque[tuple[bytes, Move]] = deque(maxlen=MOST_MOVES)

    def note(self, sequence_id: bytes, kind: MoveKind, num_columns: int, why: str) -> None:
        """`num_columns` of a sequence moved."""
        if num_columns <= 0:
            return
        move = Move(time.time(), kind, num_columns * LEAF_TOKENS, why)
        if self._moves:
            last_id, last = self._moves[-1]
            is_same = (last_id, last.kind, last.why) == (sequence_id, kind, why)
            if is_same and 0 <= move.at - last.at < JOINED_S:
                joined = dataclasses.replace(move, num_tokens=last.num_tokens + move.num_tokens)
                self._moves[-1] = (sequence_id, joined)
                return
        self._moves.append((sequence_id, move))

    def latest(self) -> list[tuple[bytes, Move]]:
        """Sequence ids and moves, oldest first (any thread)."""
        return list(self._moves.copy())  # one call that holds the GIL: the deque may grow meanwhile
