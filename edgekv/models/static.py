"""Static embeddings of texts: a weighted mean of the model's own token vectors. No forward pass, no KV.

Two steps make the plain mean a useful one (on turns of long chats recall of the wanted ones doubles): frequent
tokens weigh little (SIF: Arora, Liang and Ma, "A simple but tough-to-beat baseline for sentence embeddings", ICLR
2017), where for lack of a corpus a token's frequency is Zipf's by its place in the vocabulary, which tokenizers
fill with the most frequent merges first; and the vectors' common mean is taken off (arXiv 1702.01417). Refused:
taking off principal components too (no better), an encoder of its own (packages either ship no weights or fetch
files when they are used). Knows the embedding table; nothing of texts.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgekv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekv.models.linear import Linear

SMOOTHING = 1e-4
"""SIF's a: tokens that are rarer than this count fully."""
ROWS_AT_ONCE = 4096
EULER = 0.5772156649


class StaticEncoder:
    """Vectors of token lists. Any thread; the mean of the table is computed at the first use."""

    def __init__(self, table: Linear, device: torch.device) -> None:
        self._table = table
        self._device = device
        self._lock = threading.Lock()
        self._mean: Tensor | None = None
        num_tokens = table.shape[0]
        ranks = torch.arange(1, num_tokens + 1, dtype=torch.float64)
        frequency = 1 / (ranks * (math.log(num_tokens) + EULER))
        self._weights = (SMOOTHING / (SMOOTHING + frequency)).float().to(device)

    @torch.inference_mode()
    def encode(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors [N, D] of length 1 of N texts of at least one token each, in any order of memory.

        Raises:
            ConfigError: an id that is not in the vocabulary.
        """
        mean = self._common_mean()
        vectors = np.empty((len(texts), len(mean)), np.float32)
        for at, token_ids in enumerate(texts):
            vectors[at] = self._vector(token_ids, mean).cpu().numpy()
        return vectors

    def _vector(self, token_ids: Sequence[int], mean: Tensor) -> Tensor:
        assert len(token_ids) > 0, "checked where texts are known"
        found, counts = np.unique(np.asarray(token_ids, np.int64), return_counts=True)
        num_tokens = self._table.shape[0]
        if found[0] < 0 or found[-1] >= num_tokens:
            wrong = found[0] if found[0] < 0 else found[-1]
            raise ConfigError(
                f"token {wrong} is not in this model's vocabulary: ids are 0 to {num_tokens - 1}"
            )
        total = torch.zeros_like(mean)
        for first in range(0, len(found), ROWS_AT_ONCE):
            ids = torch.from_numpy(found[first : first + ROWS_AT_ONCE]).to(self._device)
            times = torch.from_numpy(counts[first : first + ROWS_AT_ONCE]).to(self._device)
            total += (self._weights[ids] * times) @ (self._table.rows(ids) - mean)
        return torch.nn.functional.normalize(total, dim=0)

    def _common_mean(self) -> Tensor:
        with self._lock:
            if self._mean is None:
                num_tokens, width = self._table.shape
                total = torch.zeros(width, dtype=torch.float64, device=self._device)
                for ids in torch.arange(num_tokens, device=self._device).split(ROWS_AT_ONCE):
                    total += self._table.rows(ids).sum(0)
                self._mean = (total / num_tokens).float()
            return self._mean
