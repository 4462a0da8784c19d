"""What the runtime tells its callers: typed events while it works, one typed result at the end.

Frozen data only; no torch, no I/O. A front end reads these and `stats.snapshot()`, nothing deeper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "cancelled", "context"]
Exactness = Literal["exact", "selected", "compressed"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one call.

    `prompt_tokens` is the whole context, reused included; `reused_tokens` are the positions whose KV
    was not computed in this call.
    """

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Static vectors of texts: `vectors` [N, D] float32, each of length 1; their dot product says how alike two
    texts are in their words. `num_tokens` of all texts together.
    """

    vectors: NDArray[np.float32]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and rates of one call. Time to first token runs from the call's submission."""

    ttft_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Bytes of KV per tier when the call ended, the process-wide peaks, and what was damaged on disk.

    `*_limit_bytes` is what the tier may hold at most; 0 where there is no such tier.
    """

    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    device_peak_bytes: int = 0
    host_peak_bytes: int = 0
    disk_peak_bytes: int = 0
    damaged_leaves: int = 0
    device_limit_bytes: int = 0
    host_limit_bytes: int = 0
    disk_limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AttentionUse:
    """What those passes of one call attended to that read a budget; all zero where every pass read everything.

    `mean_tokens`: attended per layer and step, on average. `mass_kept`: share of the attention to the
    sink, the nearest and all that could be chosen which fell on what was attended, estimated from low-bit keys
    whenever a layer ranks all of them (None where none did).
    `device_bytes_read`, `host_bytes_read`: leaves attended, by the pool they lay in (of decode passes one in 16 is
    looked at and stands for those up to the next). `promoted_bytes`: leaves that a step selected and had to wait
    for, `disk_bytes_read`: those of them that came from disk. What was brought is kept for the steps to come, which
    choose alike, and nothing else is foretold: `prefetch_precision` is the share of the leaves brought that a later
    step of the call used (those of its last steps lower it), `prefetch_recall` the share of the leaves needed, of
    those that no whole column in memory holds, that an earlier step had brought. None where there were none.
    `most_read`: which 16 tokens of the past were selected most, by their first position, and the share of layers
    and steps that read them, of a sample; the first and the last tokens, which are always read, left out.
    """

    mean_tokens: float = 0.0
    mass_kept: float | None = None
    host_bytes_read: int = 0
    device_bytes_read: int = 0
    disk_bytes_read: int = 0
    promoted_bytes: int = 0
    prefetch_precision: float | None = None
    prefetch_recall: float | None = None
    most_read: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One finished, stopped or cancelled answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    exactness: Exactness = "exact"
    attention: AttentionUse = field(default_factory=AttentionUse)
    cache: CacheUse = field(default_factory=CacheUse)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Prefill has `done` of `total` context tokens in the cache; `reused` of them were not computed."""

    done: int
    total: int
    reused: int
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Newly generated text, always whole characters; `num_tokens` were generated so far (0: not counted)."""

    text: str
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know and need not act on: a fallback, a full disk, a recomputed leaf."""

    message: str


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of every stream."""

    result: Result


Event = PrefillProgress | TextDelta | Notice | Done
