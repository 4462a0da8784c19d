"""What moved between the tiers lately, and why: for people, not for decisions.

Bounded for each kind by itself: an answer that demotes with every token does not push out what was evicted an hour
ago. The engine's thread writes, any thread may read. Knows ids and numbers, moves nothing.
"""

from __future__ import annotations

import dataclasses
import time
from typing import get_args

from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.stats import Move, MoveKind

MOST_OF_A_KIND = 50
JOINED_S = 60.0

Noted = tuple[bytes, Move]


class MoveLog:
    """The latest moves of each kind; those of one sequence and for one reason that follow each other are one."""

    def __init__(self) -> None:
        self._noted: dict[MoveKind, tuple[Noted, ...]] = dict.fromkeys(get_args(MoveKind), ())

    def note(self, sequence_id: bytes, kind: MoveKind, num_columns: int, why: str) -> None:
        """`num_columns` of a sequence moved."""
        if num_columns <= 0:
            return
        move = Move(time.time(), kind, num_columns * LEAF_TOKENS, why)
        others = self._noted[kind]
        for at, (last_id, last) in enumerate(others):
            if (last_id, last.why) == (sequence_id, why) and 0 <= move.at - last.at < JOINED_S:
                move = _joined(last, move)
                others = (*others[:at], *others[at + 1 :])
                break
        # A new tuple in place of the old: whoever reads meanwhile has one of them, whole.
        self._noted[kind] = (*others[1 - MOST_OF_A_KIND :], (sequence_id, move))

    def latest(self) -> list[Noted]:
        """Sequence ids and moves, oldest first by the time of their end (any thread)."""
        noted = [one for of_a_kind in self._noted.values() for one in of_a_kind]
        return sorted(noted, key=lambda one: one[1].at)


def _joined(last: Move, move: Move) -> Move:
    return dataclasses.replace(
        move,
        num_tokens=last.num_tokens + move.num_tokens,
        num_moves=last.num_moves + 1,
        seconds=move.at - last.at + last.seconds,
    )
