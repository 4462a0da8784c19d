"""Draw one token id from one row of logits.

Knows the filters and their order; does not know tokens' text, stop rules or where logits come from.

The order is llama.cpp's: repetition penalty, top-k, top-p, min-p, then temperature, then the draw. The
filters therefore judge the model's own distribution, and temperature only spreads what they left.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekv.engine.request import Sampling

# A nucleus is almost always this small; sorting the whole vocabulary costs milliseconds on a CPU.
_LIKELY_NUCLEUS = 1024


class Sampler:
    """One request's sampling state: its random numbers and the ids a penalty applies to.

    The draw inverts the cumulative distribution at one uniform number taken on the host, so a seed means
    the same on every device.
    """

    def __init__(self, sampling: Sampling, context_ids: Iterable[int] = ()) -> None:
        """`context_ids` are the ids already in the context; they matter only to the repetition penalty."""
        self._sampling = sampling
        # Not cryptography: a seed has to repeat the same draws.
        self._random = random.Random(sampling.seed)  # noqa: S311
        self._penalizes = sampling.repetition_penalty != 1.0
        self._seen: list[int] = sorted(set(context_ids)) if self._penalizes else []
        self._seen_set = set(self._seen)
        self._seen_tensor: torch.Tensor | None = None

    def accept(self, token_id: int) -> None:
        """Tell the sampler that `token_id` joined the context."""
        if self._penalizes and token_id not in self._seen_set:
            self._seen_set.add(token_id)
            self._seen.append(token_id)
            self._seen_tensor = None

    def sample(self, logits: torch.Tensor) -> int:
        """The next token id. `logits` is `[V]`, float32, on any device, and is left as it was."""
        assert logits.dim() == 1, "one row of logits at a time"
        if self._penalizes:
            logits = self._penalized(logits)
        if self._sampling.temperature == 0:
            return _likeliest(logits)
        values, ids = _filtered(logits, self._sampling)
        index = _draw(values / self._sampling.temperature, self._random.random())
        return index if ids is None else int(ids[index])

    def _penalized(self, logits: torch.Tensor) -> torch.Tensor:
        """Divide positive and multiply negative logits of seen ids by the penalty (arXiv 1909.05858)."""
        if not self._seen:
            return logits
        if self._seen_tensor is None or self._seen_tensor.device != logits.device:
            self._seen_tensor = torch.tensor(self._seen, dtype=torch.long, device=logits.device)
        penalty = self._sampling.repetition_penalty
        seen = logits[self._seen_tensor]
        return logits.index_copy(0, self._seen_tensor, torch.where(seen > 0, seen / penalty, seen * penalty))


def _likeliest(logits: torch.Tensor) -> int:
    """The id of the greatest logit, the first of equals."""
    # numpy's takes a tenth of torch's 0.1 ms for 50,000, on a CPU
    return int(logits.numpy().argmax()) if logits.is_cpu else int(torch.argmax(logits))


def _filtered(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits that survive top-k, top-p and min-p, and their ids (None: all of them, in order)."""
    values, ids = logits, None
    if 0 < sampling.top_k < logits.numel():
        values, ids = torch.topk(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        values, order = _nucleus(values, sampling.top_p)
        ids = order if ids is None else ids[order]
    if sampling.min_p > 0.0:
        kept = torch.nonzero(values >= values.max() + math.log(sampling.min_p)).squeeze(1)
        values = values[kept]
        ids = kept if ids is None else ids[kept]
    return values, ids


def _nucleus(values: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest largest logits whose probability reaches `top_p` (the one that crosses it included)."""
    log_total = torch.logsumexp(values, 0)
    for size in (min(_LIKELY_NUCLEUS, values.numel()), values.numel()):
        top, order = torch.topk(values, size)
        reached = torch.cumsum(torch.exp(top - log_total).double(), 0)
        if size == values.numel() or float(reached[-1]) >= top_p:
            break
    count = min(int((reached < top_p).sum()) + 1, size)
    return top[:count], order[:count]


def _draw(values: torch.Tensor, uniform: float) -> int:
    """Index at which the cumulative softmax of `values` first exceeds `uniform` (in [0, 1))."""
    cumulative = torch.cumsum(torch.softmax(values.double(), 0), 0)
    total = float(cumulative[-1])
    assert total > 0, "the logits are not finite"
    target = torch.tensor([uniform * total], dtype=cumulative.dtype, device=cumulative.device)
    index = int(torch.searchsorted(cumulative, target, right=True))
    return min(index, values.numel() - 1)
