"""Embeddings in the protocol's shapes: what is asked for, and the object that answers it.

Knows fields and JSON; nothing of HTTP, nor how vectors come to be.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from edgekv.server.errors import Refusal

if TYPE_CHECKING:
    from edgekv import Runtime

MOST_INPUTS = 2048


class EmbeddingRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`input` is a text, a list of texts, the token ids of one, or a list of such; `dimensions` is the model's."""

    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def texts(self) -> list[str | list[int]]:
        """The inputs, one by one. Raises Refusal, 400."""
        is_one = isinstance(self.input, str) or (self.input and all(type(one) is int for one in self.input))
        given: list[Any] = [self.input] if is_one else list(self.input)
        if not 1 <= len(given) <= MOST_INPUTS:
            raise _wrong(f"input has {len(given)} texts; it has to have 1 to {MOST_INPUTS}")
        for at, one in enumerate(given):
            if not isinstance(one, str) and not _is_ids(one):
                raise _wrong(f"input[{at}] is neither a text nor a list of token ids")
            if not one:
                raise _wrong(f"input[{at}] is empty: leave it out, there is nothing to embed")
        return given


def answer(runtime: Runtime, asked: EmbeddingRequest, model: str) -> bytes:
    """The JSON that answers the request; it computes. Raises Refusal and what `Runtime.embed` does."""
    found = runtime.embed(asked.texts())
    width = found.vectors.shape[1]
    if asked.dimensions not in (None, width):
        raise _wrong(f"dimensions cannot be chosen: this model's vectors have {width}", param="dimensions")
    is_plain = asked.encoding_format == "float"
    data = [
        {
            "object": "embedding",
            "index": at,
            "embedding": vector.tolist() if is_plain else base64.b64encode(vector.tobytes()).decode(),
        }
        for at, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.num_tokens, "total_tokens": found.num_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _is_ids(one: object) -> bool:
    return isinstance(one, list) and all(type(id_) is int and 0 <= id_ < 1 << 31 for id_ in one)


def _wrong(message: str, param: str = "input") -> Refusal:
    return Refusal(400, message, code="invalid_value", param=param)
