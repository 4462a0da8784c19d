"""Moves between the tiers as a person reads them: what goes on and on is one line, not one for each 16 tokens.

Knows moves only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv import Move
    from edgekv.stats import MoveKind


@dataclass(slots=True)
class Run:
    """Moves of one conversation, of one kind and for one reason, with no other conversation's between them."""

    kind: MoveKind
    name: str | None
    why: str
    began: float
    ended: float
    num_tokens: int = 0
    num_moves: int = 0

    @property
    def last(self) -> str:
        """The time of its last move."""
        return _clock(self.ended)

    @property
    def when(self) -> str:
        """The time, or from when until when."""
        return self.last if _clock(self.began) == self.last else f"{_clock(self.began)}-{self.last}"

    @property
    def times(self) -> str:
        """In how many moves, where there was more than one."""
        return f" in {self.num_moves:,} moves" if self.num_moves > 1 else ""


def runs_of(moves: Sequence[Move]) -> list[Run]:
    """`moves`, oldest first, as runs, by the time of their last move.

    While an answer is written, demoting and dropping take turns: both are runs of their own, side by side. Moves
    without a name may be of different conversations: they are not put together.
    """
    ended: list[Run] = []
    going: list[Run] = []
    for move in moves:
        if going and (move.name is None or going[0].name != move.name):
            ended += going
            going = []
        run = next((run for run in going if (run.kind, run.why) == (move.kind, move.why)), None)
        if run is None:
            run = Run(move.kind, move.name, move.why, began=move.at, ended=move.at)
        else:
            going.remove(run)
        run.ended = move.at
        run.num_tokens += move.num_tokens
        run.num_moves += 1
        going.append(run)
    return ended + going


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
