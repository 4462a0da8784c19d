"""Weights of leaves and what is certain of them without looking: intervals for chunks, and what follows from them.

A leaf's weight is the sum over its tokens, queries and heads of exp(score - norm), with one norm for each query
and head: estimated attention, but for the norm. Knows abstracts; not which chunks are refined when.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from edgekv.policies.selection.selector import Step

_SLACK = 1e-3  # of a bound: float32 sums in another order
_LARGEST = 60.0  # exponents end here, so that sums stay finite


@dataclass(slots=True)
class Weights:
    """Of one step; `norm` [T, Hq]. `of_seeds` are the weights of the columns `seeds` (int64)."""

    step: Step
    norm: Tensor
    seeds: Tensor
    of_seeds: Tensor

    @classmethod
    def of(cls, step: Step, seeds: Tensor) -> Self:
        """Measured by what the queries give to the columns `seeds` and to those that are attended anyway."""
        weights = cls(step, torch.empty(0), seeds, torch.empty(0))
        every = weights._scores(torch.cat([seeds, step.around.long()]))
        scores = every[:, :, : len(seeds)]
        weights.norm = every.flatten(2).logsumexp(-1)
        weights.of_seeds = weights._sum(scores)
        return weights

    def of_leaves(self, columns: Tensor) -> Tensor:
        """Weights of `columns` (int64), float32 `[n]`."""
        return self._sum(self._scores(columns))

    def bounds(self, rows: Tensor, first_columns: Tensor) -> tuple[Tensor, Tensor]:
        """The most and the least that any leaf of each chunk can weigh: float32 `[n]` twice.

        rows: of nodes or larger chunks, each beginning at its first column.
        """
        step, turns = self.step, self.step.turns
        if turns is not None:
            first_columns = first_columns.clamp_min(step.columns.start)  # the sink is turned otherwise
            turns = turns.at(first_columns.repeat_interleave(kernels.NODE_LEAVES))
        lower, upper = kernels.node_bounds(step.q, rows.contiguous(), 0, len(rows), step.scale, turns)
        most, least = (self._exp(scores).sum((0, 1)) * kernels.LEAF_TOKENS for scores in (upper, lower))
        return most * (1 + _SLACK), least * (1 - _SLACK)

    def _scores(self, columns: Tensor) -> Tensor:
        """Scores by low-bit keys, float32 `[T, Hq, n, 16]`."""
        step, abstracts = self.step, self.step.abstracts
        if abstracts.num_absent:
            abstracts.ensure(step.layer, columns.numpy())
        keys = abstracts.keys(step.layer)[columns]
        turns = None if step.turns is None else step.turns.at(columns)
        return kernels.leaf_scores(step.q, keys, step.scale, turns)

    def _exp(self, scores: Tensor) -> Tensor:
        norm = self.norm.reshape(self.norm.shape + (1,) * (scores.dim() - 2))
        return (scores - norm).clamp_max(_LARGEST).exp()

    def _sum(self, scores: Tensor) -> Tensor:
        return self._exp(scores).sum((0, 1, 3))


def settle(upper: Tensor, lower: Tensor, sizes: Tensor, found: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which chunks are certain to be among the best `count` leaves, and which are certain not to be: bool twice.

    sizes: leaves of each chunk, int64; found: weights of leaves that are known, some of them in the chunks.
    """
    enough = -torch.inf  # `count` leaves weigh as much for certain
    if len(found) >= count:
        enough = float(found.topk(count).values[-1])
    falling, order = lower.sort(descending=True)
    covered = sizes[order].cumsum(0)
    if len(covered) and int(covered[-1]) >= count:
        enough = max(enough, float(falling[int(torch.searchsorted(covered, count))]))
    rising, order = upper.sort()
    above = sizes[order].flip(0).cumsum(0).flip(0)  # leaves of chunks from here on
    above = torch.cat([above, above.new_zeros(1)])
    rivals = above[torch.searchsorted(rising, lower)]
    known = found.sort().values
    rivals = rivals + len(known) - torch.searchsorted(known, lower)
    return (rivals <= count) & (upper >= enough), upper < enough
