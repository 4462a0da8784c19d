"""What is asked of the engine for one answer, and who runs it: shared by all that generate.

Knows options and limits; nothing of turns or texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgekv.engine.request import MAX_CONTEXT_TOKENS, Sampling
from edgekv.errors import ContextOverflow

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv.config import Config
    from edgekv.conversation.stream import Generation
    from edgekv.engine.request import Expect


class Executor(Protocol):
    """Who runs generations, one at a time and in order."""

    def submit(self, generation: Generation, prepare: Callable[[], None]) -> None:
        """Reserve a place in the queue, `prepare()`, enqueue. Raises Busy or Closed before preparing."""
        ...

    def where(self, sequence_id: bytes) -> str:
        """The tier of each column, as `EngineLike.where`."""
        ...

    def hint(self, sequence_id: bytes, expect: Expect, ttl_s: float | None) -> None:
        """As `EngineLike.hint`."""
        ...

    def check_usable(self) -> None:
        """Raise Closed in a fork or after `close()`."""
        ...

    def take_notices(self) -> list[str]:
        """What has to be said once and was not said yet."""
        ...


def room_for(num_tokens: int, config: Config, window: int) -> int:
    """How many tokens an answer behind a context of `num_tokens` may have; ContextOverflow if none.

    `window` is the model's trained one; beyond it attention selects, unless it has to be exact.
    """
    if config.attention != "exact":
        window = MAX_CONTEXT_TOKENS
    elif num_tokens + 1 > window:
        raise ContextOverflow(
            f"the conversation has {num_tokens} tokens with this message, and the model's trained window "
            f"is {window}; edit an earlier turn, start a new conversation, or use --attention auto"
        )
    return window - num_tokens


def sampling_of(config: Config) -> Sampling:
    """The engine's view of the sampling options."""
    return Sampling(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
    )
