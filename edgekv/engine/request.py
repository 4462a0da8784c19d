"""What the engine is asked to do: whole-context token ids in, events out. No text but stop strings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from edgekv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekv.events import CacheUse, Event, Result
    from edgekv.stats import Move

Emit = Callable[["Event"], None]
IsCancelled = Callable[[], bool]
Expect = Literal["tool", "user", "done"]

MAX_CONTEXT_TOKENS = (1 << 31) - 1  # where attention selects there is no other limit: positions have 32 bits


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature=0` is greedy; `top_k=0`, `top_p=1`, `min_p=0` are off.

    Raises ConfigError for a value out of its range.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, "0 or more", 0 <= self.temperature < math.inf)
        _check("top_k", self.top_k, "0 (off) or more", self.top_k >= 0)
        _check("top_p", self.top_p, "above 0 and at most 1 (off)", 0 < self.top_p <= 1)
        _check("min_p", self.min_p, "between 0 (off) and 1", 0 <= self.min_p <= 1)
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, "above 0 (1 is off)", 0 < penalty < math.inf)


def _check(name: str, value: float, allowed: str, holds: bool) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}; it has to be {allowed}", name)


@dataclass(frozen=True, slots=True)
class Request:
    """One generation.

    `sequence_id` names the KV (16 bytes, one per conversation; its branches share it); `token_ids` is the
    whole context. `durable` allows the disk tier. `stop_ids` end generation and are not part of the text.
    """

    sequence_id: bytes
    token_ids: Sequence[int]
    durable: bool
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    submitted_at: float | None = None  # time.perf_counter() at send(); time to first token runs from here


class EngineLike(Protocol):
    """What the runtime needs of an engine; called from one thread only, but for those that say "any thread"."""

    def generate(self, request: Request, emit: Emit, is_cancelled: IsCancelled) -> Result:
        """Run one request; emits PrefillProgress, TextDelta and Notice (the caller adds Done).

        A cancelled run returns normally with finish_reason "cancelled" and what was generated. All full
        leaves are handed to the disk tier before it returns when the request is durable.
        """
        ...

    def warm_up(self) -> None:
        """Pay one-time costs of computing now; called once, before the first request is served."""
        ...

    @property
    def is_loaded(self) -> bool:
        """Whether weights and pools are in memory (any thread)."""
        ...

    def load(self) -> None:
        """Bring them back where `unload` gave them up; `generate` does it by itself."""
        ...

    def unload(self) -> None:
        """Write what is durable and free weights and pools; what is not durable is computed again."""
        ...

    def release(self, sequence_id: bytes, *, forget: bool) -> None:
        """Drop the sequence from device and host; with `forget`, from disk as well."""
        ...

    def hint(self, sequence_id: bytes, expect: Expect, ttl_s: float | None) -> None:
        """Who asks next in a sequence, and for how many seconds that holds (None: as usual for `expect`): orders
        who gives way first (any thread).
        """
        ...

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32] | None:
        """Static vectors [N, D] of token lists, no KV; None where the weights are not loaded (any thread)."""
        ...

    def cache_use(self) -> CacheUse:
        """Bytes per tier now and at their peaks (any thread)."""
        ...

    def where(self, sequence_id: bytes) -> str:
        """A letter for each column (16 tokens): D device, H host, S disk, - nowhere; "" if cold (any thread)."""
        ...

    def moves(self) -> list[tuple[bytes, Move]]:
        """What moved between the tiers lately, with its sequence, oldest first (any thread)."""
        ...

    def stored_paths(self, sequence_id: bytes) -> list[NDArray[np.int32]]:
        """Token ids [T] of every path that is stored of a sequence, verified (any thread); none without a disk."""
        ...

    def close(self) -> None:
        """Flush what is durable and free all memory."""
        ...
