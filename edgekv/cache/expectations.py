"""When a sequence is likely to be asked for again, as whoever talks in it said (Continuum, arXiv 2511.02230).

Knows hints and when they lapse. They order who gives way first and nothing else: nothing is ever freed for one,
and nothing is kept that has no room. Any thread may note one.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_TTL_S = {"tool": 2.0, "user": 60.0, "done": float("inf")}
"""2 s is what Continuum's released code pins a tool call for; people take longer (median 45 s)."""


class Expected(IntEnum):
    """Who gives way first: the smallest."""

    NEVER = 0
    UNKNOWN = 1
    IN_A_WHILE = 2
    AT_ONCE = 3


_MEANING = {"tool": Expected.AT_ONCE, "user": Expected.IN_A_WHILE, "done": Expected.NEVER}


class Expectations:
    """What was said of sequences. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[bytes, tuple[Expected, float]] = {}

    def note(self, sequence_id: bytes, expect: str, ttl_s: float | None = None) -> None:
        """`expect` is tool, user or done; it lapses after `ttl_s` seconds."""
        ttl_s = DEFAULT_TTL_S[expect] if ttl_s is None else ttl_s
        self._said[sequence_id] = (_MEANING[expect], self._clock() + ttl_s)

    def of(self, sequence_id: bytes) -> Expected:
        """What holds now."""
        expected, until = self._said.get(sequence_id, (Expected.UNKNOWN, 0.0))
        return expected if self._clock() < until else Expected.UNKNOWN

    def fulfilled(self, sequence_id: bytes) -> None:
        """It was asked for, or is gone: what was said is void."""
        self._said.pop(sequence_id, None)
