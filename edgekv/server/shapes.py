"""Answers in the shapes of the OpenAI protocol: whole objects, and the chunks of a stream.

Knows results and JSON; nothing of HTTP. What the protocol has no word for (how exact an answer is, what the user
should know) stands under `edgekv`.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgekv import Result

Json = dict[str, object]

_REASONS = {"stop": "stop", "length": "length", "context": "length", "cancelled": "length"}


class Shape(Protocol):
    """One answer's form."""

    def whole(self, result: Result) -> Json:
        """The object of an answer that is not streamed."""
        ...

    def chunks_before(self) -> list[Json]:
        """What a stream begins with."""
        ...

    def chunk(self, text: str) -> Json:
        """New text."""
        ...

    def chunks_after(self, result: Result, *, with_usage: bool) -> list[Json]:
        """What a stream ends with."""
        ...


def usage_of(result: Result) -> Json:
    """`cached_tokens` are those whose KV was not computed in this call."""
    use = result.usage
    return {
        "prompt_tokens": use.prompt_tokens,
        "completion_tokens": use.completion_tokens,
        "total_tokens": use.prompt_tokens + use.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": use.reused_tokens},
    }


def extra_of(result: Result) -> Json:
    """What is edgekv's own to say of an answer."""
    return {
        "finish_reason": result.finish_reason,
        "exactness": result.exactness,
        "mass_kept": result.attention.mass_kept,
        "ttft_s": result.timings.ttft_s,
        "notices": list(result.notices),
    }


class _Shape:
    """What both shapes share."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, *, with_usage: bool) -> None:
        self._head: Json = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._no_usage: Json = (
            {"usage": None} if with_usage else {}
        )  # the protocol wants it in every chunk then

    def _chunk(self, choice: Json) -> Json:
        choices = [{"index": 0, "logprobs": None, **choice}]
        return {**self._head, "object": self.chunk_kind, "choices": choices, **self._no_usage}

    def _whole(self, choice: Json, result: Result) -> Json:
        choices = [{"index": 0, "logprobs": None, "finish_reason": _REASONS[result.finish_reason], **choice}]
        return {
            **self._head,
            "object": self.kind,
            "choices": choices,
            "usage": usage_of(result),
            "edgekv": extra_of(result),
        }

    def _last(self, choice: Json, result: Result, *, with_usage: bool) -> list[Json]:
        last = {
            **self._chunk({**choice, "finish_reason": _REASONS[result.finish_reason]}),
            "edgekv": extra_of(result),
        }
        if not with_usage:
            return [last]
        return [last, {**self._head, "object": self.chunk_kind, "choices": [], "usage": usage_of(result)}]


class ChatShape(_Shape):
    """`chat.completion` and `chat.completion.chunk`."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def whole(self, result: Result) -> Json:
        """See `Shape`."""
        return self._whole(
            {"message": {"role": "assistant", "content": result.text, "refusal": None}}, result
        )

    def chunks_before(self) -> list[Json]:
        """See `Shape`."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})]

    def chunk(self, text: str) -> Json:
        """See `Shape`."""
        return self._chunk({"delta": {"content": text}, "finish_reason": None})

    def chunks_after(self, result: Result, *, with_usage: bool) -> list[Json]:
        """See `Shape`."""
        return self._last({"delta": {}}, result, with_usage=with_usage)


class TextShape(_Shape):
    """`text_completion`, whole and in chunks."""

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def whole(self, result: Result) -> Json:
        """See `Shape`."""
        return self._whole({"text": result.text}, result)

    def chunks_before(self) -> list[Json]:
        """See `Shape`."""
        return []

    def chunk(self, text: str) -> Json:
        """See `Shape`."""
        return self._chunk({"text": text, "finish_reason": None})

    def chunks_after(self, result: Result, *, with_usage: bool) -> list[Json]:
        """See `Shape`."""
        return self._last({"text": ""}, result, with_usage=with_usage)
