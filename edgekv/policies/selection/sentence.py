"""Chunks that follow sentences, ranked by the sentence being generated (SentenceKV, arXiv 2504.00970).

The query is the mean over the tokens of the sentence so far: it drifts less than a token's own. Where ids of
tokens that end sentences are known, the columns of a sentence are taken together; else each stands alone. The
paper's sentence vectors are means of keys; here low-bit keys of all tokens are weighed: no memory of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from edgekv.policies.selection.selector import Step

_LONGEST_COLUMNS = 4  # a text without full stops is no single sentence


@dataclass(slots=True)
class Sentence(Selector):
    """`end_ids`: tokens that end a sentence. `longest` tokens at most count as one."""

    end_ids: frozenset[int] = frozenset()
    longest: int = 32
    _sums: dict[int, tuple[Tensor, int]] = field(default_factory=dict)  # of queries, and how many
    _ends: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))  # by column

    def select(self, step: Step) -> int:
        """See `Selector`."""
        mass = step.mass(self._mean(step))
        return step.keep_best(self._by_sentence(mass, step) if self.end_ids else mass)

    def reset(self) -> None:
        """See `Selector`."""
        self._sums.clear()
        self._ends = torch.empty(0, dtype=torch.bool)

    def _mean(self, step: Step) -> Tensor:
        """The sentence's query `[1, Hq, D]`; a block's own ones, since it holds many sentences."""
        if len(step.q) > 1:
            self._sums.pop(step.layer, None)
            return step.q
        total, count = self._sums.get(step.layer, (torch.zeros_like(step.q), 0))
        has_ended = bool(step.token_ids) and step.token_ids[-1] in self.end_ids
        if has_ended or count >= self.longest:
            total, count = torch.zeros_like(step.q), 0
        self._sums[step.layer] = total + step.q, count + 1
        mean: Tensor = (total + step.q) / (count + 1)
        return mean

    def _by_sentence(self, mass: Tensor, step: Step) -> Tensor:
        """The mean over the columns of each column's sentence."""
        first, last = step.columns.start, step.columns.stop
        self._find_ends(step.token_ids, last)
        ends = self._ends[first:last].long()
        chunk = ends.cumsum(0) - ends
        sums, sizes = torch.zeros(2, len(mass))
        sums.index_add_(0, chunk, mass)
        sizes.index_add_(0, chunk, torch.ones_like(mass))
        mean: Tensor = (sums / sizes.clamp_min(1))[chunk]
        return mean

    def _find_ends(self, token_ids: Sequence[int], last: int) -> None:
        """Extend `_ends` up to column `last - 1`: whether a sentence ends in it, or has to."""
        known = len(self._ends)
        if known < last:
            new = [
                column % _LONGEST_COLUMNS == _LONGEST_COLUMNS - 1
                or not self.end_ids.isdisjoint(token_ids[column * LEAF_TOKENS : (column + 1) * LEAF_TOKENS])
                for column in range(known, last)
            ]
            self._ends = torch.cat([self._ends, torch.tensor(new)])
