"""Pages by their bounds, as Quest ranks them (arXiv 2406.10774): a page is a leaf, its minimum and maximum those
that its low-bit keys enclose. Kept for comparison: bounds rank worse than the keys that they come from.

Quest lets each head choose pages of its own. A leaf brings all heads, so they share one choice here: the greatest
possible score of each page, as a softmax over pages for each query and head, summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels
from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from torch import Tensor

    from edgekv.policies.selection.selector import Step

_PAGES = 1024  # bounded at once: a block's sample of queries, turned for each page, takes 75 KB a page


@dataclass(slots=True)
class Quest(Selector):
    """Ranks by upper bounds."""

    def select(self, step: Step) -> int:
        """See `Selector`."""
        keys, columns = step.every_key(), step.columns
        edges = [*range(columns.start, columns.stop, _PAGES), columns.stop]
        upper = [self._upper(step, keys, first, last) for first, last in pairwise(edges)]
        return step.keep_best(torch.cat(upper, -1).softmax(-1).sum((0, 1)))

    @staticmethod
    def _upper(step: Step, keys: Tensor, first: int, last: int) -> Tensor:
        bounds = kernels.leaf_bounds(step.q, keys, None, first, last, step.scale, step.turns)
        return bounds[1]

    def reset(self) -> None:
        """See `Selector`."""
