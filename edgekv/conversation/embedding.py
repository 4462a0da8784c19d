"""Texts to static vectors: tokens here, arithmetic in the engine, whichever thread asks.

Knows the tokenizer and the engine's thread; nothing of conversations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv.errors import ConfigError
from edgekv.events import Embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekv.conversation.worker import EngineThread
    from edgekv.engine.request import EngineLike


def embed(worker: EngineThread, texts: Sequence[str | Sequence[int]]) -> Embeddings:
    """Vectors of texts or token ids; beside what is being generated, unless the model has to be loaded first.

    Raises:
        ConfigError: an empty text, or an id that is not in the vocabulary.
    """
    tokenizer = worker.front.tokenizer
    ids = [
        tokenizer.encode_pieces([(text, False)]) if isinstance(text, str) else list(text) for text in texts
    ]
    for at, tokens in enumerate(ids):
        if not tokens:
            raise ConfigError(f"text {at} is empty: leave it out, there is nothing to embed")

    def load_and_embed(engine: EngineLike) -> NDArray[np.float32]:
        engine.load()
        vectors = engine.embed(ids)
        assert vectors is not None, "it was loaded a line above, in the only thread that unloads"
        return vectors

    vectors = worker.engine.embed(ids)
    if vectors is None:
        vectors = worker.call(load_and_embed)
    return Embeddings(vectors, sum(map(len, ids)))
