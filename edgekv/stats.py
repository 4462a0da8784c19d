"""What a front end may show of a running Runtime: one frozen snapshot.

Plain data; no torch, no I/O, and nothing of how the numbers came to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgekv.events import CacheUse


MoveKind = Literal["demoted", "dropped", "evicted"]


@dataclass(frozen=True, slots=True)
class Move:
    """KV that went from one tier to another, in `num_moves` within the `seconds` that end `at` (since 1970).

    `kind`: demoted (off the device; a copy lies below), dropped (the host's copy; it is on disk), or evicted (the
    last copy: its tokens are computed again when needed). `name` is the conversation's, None for one not open.
    """

    at: float
    kind: MoveKind
    num_tokens: int
    why: str
    name: str | None = None
    num_moves: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The Runtime at one moment.

    `device_budget`, `host_budget` and `disk_budget` are the configured limits in bytes (None: chosen at run
    time; `cache` has the limits as they are). `degraded` says why nothing is kept on disk, or is None.
    `is_loaded`: whether the weights are in memory.
    """

    model: str
    context_length: int
    cache: CacheUse
    device_budget: int | None
    host_budget: int
    disk_budget: int
    num_waiting: int
    is_generating: bool
    num_open_conversations: int
    degraded: str | None
    is_loaded: bool = True
