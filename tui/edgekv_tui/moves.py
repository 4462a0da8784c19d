"""Moves between the tiers in a person's words. Knows moves only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekv import Move


def clock(at: float) -> str:
    """A time of the day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def when(move: Move) -> str:
    """The time, or from when until when."""
    began, ended = clock(move.at - move.seconds), clock(move.at)
    return ended if began == ended else f"{began}-{ended}"


def times(move: Move) -> str:
    """In how many moves, where there was more than one."""
    return f" in {move.num_moves:,} moves" if move.num_moves > 1 else ""
