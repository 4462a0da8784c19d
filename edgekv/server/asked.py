"""What a request asks for: JSON in, checked values out.

Knows the fields of the OpenAI protocol: which are understood, which are refused by name because edgekv does not
do it, and which may stand there with the value that means nothing. An unknown field is an error: a misspelt
option never does nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from edgekv.server.errors import Refusal, unsupported

Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
StopText = Annotated[str, Meta(max_length=1000)]

REFUSED = {
    "audio": "audio",
    "best_of": "several answers at once",
    "echo": "echoing the prompt",
    "frequency_penalty": "frequency penalties (repetition_penalty is there)",
    "function_call": "tool calls",
    "functions": "tool calls",
    "logit_bias": "biases of single tokens",
    "logprobs": "log-probabilities",
    "modalities": "anything but text",
    "n": "several answers at once",
    "prediction": "predicted outputs",
    "presence_penalty": "presence penalties (repetition_penalty is there)",
    "reasoning_effort": "levels of reasoning",
    "response_format": "output by JSON schema",
    "store": "storing without a name (give `conversation` a name to keep it)",
    "suffix": "filling gaps",
    "tool_choice": "tool calls",
    "tools": "tool calls",
    "top_logprobs": "log-probabilities",
    "verbosity": "levels of verbosity",
    "web_search_options": "web search",
}
MEANS_NOTHING: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
IGNORED = ("user", "metadata", "parallel_tool_calls", "service_tier", "safety_identifier", "prompt_cache_key")
"""Labels of the caller's own: they ask for nothing."""


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How a stream is sent. `include_obfuscation` is about networks that others listen to, which this is not."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Common(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints understand; `top_k`, `min_p`, `repetition_penalty` and `timeout` are edgekv's own."""

    model: str
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    timeout: float | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def options(self) -> dict[str, Any]:
        """What was given of the options of an answer, under the runtime's names."""
        names = (
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "seed",
            "stop",
            "timeout",
        )
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


class Part(Struct, frozen=True):
    """A part of a message; only text is understood."""

    type: str
    text: str | None = None


class ChatMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """One message as it is sent."""

    role: str
    content: str | list[Part] | None = None


class ChatRequest(Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chat completion. `conversation` names a kept conversation; without it nothing is kept."""

    messages: list[ChatMessage]
    max_completion_tokens: Count | None = None
    conversation: str | None = None

    def options(self) -> dict[str, Any]:
        """As above; both names of the longest answer mean the same."""
        options = Common.options(self)
        if self.max_completion_tokens is not None:
            options["max_tokens"] = self.max_completion_tokens
        return options

    def pairs(self) -> list[tuple[str, str]]:
        """The messages as (role, text)."""
        return [(message.role, _text(message, f"messages[{at}]")) for at, message in enumerate(self.messages)]


class TextRequest(Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A completion of one text."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


R = TypeVar("R", bound=Struct)


def parse(body: bytes, kind: type[R]) -> R:
    """The request in `body`. Raises Refusal, 400, naming the field at fault."""
    try:
        given = msgspec.json.decode(body)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON: {_reason(error)}", code="invalid_json") from error
    if not isinstance(given, dict):
        raise Refusal(400, "the body has to be a JSON object", code="invalid_json")
    known = set(kind.__struct_fields__)
    values = {}
    for name, value in given.items():
        if value is None or name in IGNORED:
            continue
        if name in known:
            values[name] = value
        elif name in REFUSED:
            if not _means_nothing(name, value):
                raise unsupported(name, REFUSED[name])
        else:
            raise Refusal(400, f"unknown field: {name[:100]}", code="unknown_parameter", param=name[:100])
    if isinstance(values.get("messages"), list):
        values["messages"] = [_stripped(message, at) for at, message in enumerate(values["messages"])]
    try:
        return msgspec.convert(values, kind)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        reason = _reason(error)
        _, _, place = reason.partition(" - at `$.")
        param = place.rstrip("`").partition("[")[0] or None
        raise Refusal(400, reason, code="invalid_value", param=param) from error


def _means_nothing(name: str, value: object) -> bool:
    # By type too: False is not 0 here, which asks for something elsewhere.
    return any(type(value) is type(nothing) and value == nothing for nothing in MEANS_NOTHING.get(name, ()))


def _stripped(message: object, at: int) -> object:
    """A message without what is null; what edgekv does not do is refused by name."""
    if not isinstance(message, dict):
        return message
    kept = {name: value for name, value in message.items() if value is not None and value != []}
    for name in ("tool_calls", "function_call", "tool_call_id"):
        if name in kept:
            raise unsupported(f"messages[{at}].{name}", "tool calls")
    if message.get("role") in ("tool", "function"):
        raise unsupported(f"messages[{at}].role", "tool calls")
    if "name" in kept:
        raise unsupported(f"messages[{at}].name", "names of speakers")
    return kept


def _text(message: ChatMessage, place: str) -> str:
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise unsupported(f"{place}.content", "images, audio or files: only parts of type text")
    return "".join(part.text or "" for part in message.content)


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:300]
