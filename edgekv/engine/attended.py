"""The attention that each column would get if everything were attended: for the oracle and for measurements.

Reads every leaf of the layer, at most so many at a time as one step may promote. Knows slots; not who asks or why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels
from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Of one pass over the columns `free` int32 `[n]` to choose from, and the `fixed` ones behind them: the last
    lacks `num_missing` tokens. `placed(layer, columns)` finds, or brings, their leaves: slots in `pool` and turns
    (or None), both where the pool is.
    """

    placed: Callable[[int, Tensor], tuple[Tensor, kernels.Turns | None]]
    pool: Tensor
    free: Tensor
    fixed: Tensor
    num_missing: int
    at_once: int
    scale: float

    def of(self, layer: int, q: Tensor) -> Tensor:
        """What `free` gets of queries `[T, Hq, D]` on the pool's device, summed over them and their heads: float32
        `[n]` on the CPU.

        With what `fixed` gets these would sum to T * Hq.
        """
        parts = torch.cat([self.free, self.fixed]).split(self.at_once)
        lse = [self._part(layer, q, part, is_last=part is parts[-1]) for part in parts]
        return torch.cat(lse, -1).softmax(-1).sum((0, 1))[: len(self.free)].cpu()

    def _part(self, layer: int, q: Tensor, columns: Tensor, *, is_last: bool) -> Tensor:
        slots, turns = self.placed(layer, columns)
        num_tokens = len(columns) * LEAF_TOKENS - (self.num_missing if is_last else 0)
        return kernels.leaf_logsumexp(q, self.pool, slots, num_tokens, self.scale, turns)
