"""What is asked of the engine for one answer, who runs it, and what goes along: shared by all that generate.

Knows options, limits and notices; nothing of turns or texts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from edgekv.conversation.stream import CancelToken, Generation
from edgekv.engine.request import MAX_CONTEXT_TOKENS, Request, Sampling
from edgekv.errors import ContextOverflow
from edgekv.events import Notice, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgekv.config import Config
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


def ask(
    request: Request,
    config: Config,
    executor: Executor,
    *,
    token: CancelToken | None,
    commit: Callable[[Result], Result],
    prepare: Callable[[], Iterable[str]] = tuple,
) -> Generation:
    """Enqueue a request; call `queued()` of what is returned once whoever asks can be cancelled.

    `prepare` runs when a place in the queue is certain and says what a person should know; `commit` keeps the
    answer in the engine's thread. What was said goes before the notices of the answer. Raises Busy or Closed, and
    then nothing was prepared or said.
    """
    told: list[str] = []

    def settle(result: Result) -> Result:
        if result.finish_reason == "length" and len(result.token_ids) < config.max_tokens:
            result = dataclasses.replace(result, finish_reason="context")
        result = commit(result)
        return dataclasses.replace(result, notices=(*told, *result.notices))

    generation = Generation(request, settle, timeout=config.timeout, token=token)

    def begin() -> None:
        for say in (executor.take_notices, prepare):
            for message in say():
                told.append(message)
                generation.mailbox.put(Notice(message))

    executor.submit(generation, begin)
    return generation


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
