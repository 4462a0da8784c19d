"""The default: tree nodes skip deserts, low-bit keys rank what is left (kv-path: selection).

Nodes of 8 leaves are only scored where more than `max_candidates` columns are to choose from; what won the step
before stays a candidate, since neighbouring steps choose nearly the same. Sink and window take part in each head's
softmax: without them heads that look nowhere else counted as much as those that look far, and a needle was lost.
Every token is ranked for: every second one only halved the time and lost a needle that exact attention found. But
in three of four tokens only the best of the last full ranking are ranked again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels
from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from torch import Tensor

    from edgekv.policies.selection.selector import AbstractsLike, Step

SEARCH_EVERY = 4  # tokens, per layer; half as often where a search walks over many nodes
LONG_COLUMNS = 2048
MAX_CANDIDATES = 512
MAX_CANDIDATES_ON_DISK = 256  # each is a read
KEPT = 128  # columns that are ranked between two searches
MARGIN = 2  # at least so many times the columns to choose, of candidates and of those kept


@dataclass(slots=True)
class Cascade(Selector):
    """Ranks by the estimated attention mass, summed over heads and queries."""

    max_candidates: int = MAX_CANDIDATES
    search_every: int = SEARCH_EVERY
    kept: int = KEPT
    _winners: Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.int32))  # [layers, room]
    _num_winners: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    _kept: Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.int32))  # of `Choosing`

    def select(self, step: Step) -> int:
        """See `Selector`."""
        self._make_room(step.layer + 1, step.num_columns)
        self._kept[step.layer, 0] = 0  # a block asks for something else: the next token searches again
        count = self._rank(step)
        self._winners[step.layer, :count] = step.out[:count]
        self._num_winners[step.layer] = count
        return count

    def choosing(
        self, abstracts: AbstractsLike, columns: range, num_columns: int, around: Tensor
    ) -> kernels.Choosing | None:
        """See `Selector`."""
        if abstracts.num_absent:
            return None
        keys = abstracts.all_keys
        self._make_room(len(keys), num_columns)
        return kernels.Choosing(
            keys=keys,
            nodes=abstracts.all_nodes,
            first=columns.start,
            last=columns.stop,
            budget=num_columns,
            max_candidates=max(self.max_candidates, MARGIN * num_columns),
            winners=self._winners,
            num_winners=self._num_winners,
            kept=self._kept,
            around=around,
            period=self.search_every * (1 if len(columns) <= LONG_COLUMNS else 2),
        )

    def _make_room(self, num_layers: int, num_columns: int) -> None:
        """For so many winners in so many layers."""
        layers, room = self._winners.shape
        if num_layers > layers or num_columns > room:
            before, counts = self._winners, self._num_winners
            self._winners = torch.zeros((max(layers, num_layers), max(room, num_columns)), dtype=torch.int32)
            self._winners[:layers, :room] = before
            self._num_winners = torch.zeros(len(self._winners), dtype=torch.int32)
            self._num_winners[:layers] = counts
            room = max(self.kept, MARGIN * self._winners.shape[1]) + self._winners.shape[1]
            self._kept = torch.zeros((len(self._winners), room + 3), dtype=torch.int32)

    def _last_winners(self, layer: int) -> Tensor:
        return self._winners[layer, : int(self._num_winners[layer])]

    def _rank(self, step: Step) -> int:
        if step.abstracts.num_absent:
            return self._select_from_disk(step)
        count = kernels.select_leaves(
            step.q,
            step.abstracts.keys(step.layer),
            step.columns.start,
            step.columns.stop,
            step.num_columns,
            step.scale,
            step.out,
            nodes=step.abstracts.nodes(step.layer),
            max_candidates=max(self.max_candidates, MARGIN * step.num_columns),
            extra=self._last_winners(step.layer),
            around=step.around,
            turns=step.turns,
            style=step.style,
        )
        return int(count)

    def _select_from_disk(self, step: Step) -> int:
        """The same while low-bit keys are still on disk: those of candidates only are brought."""
        bounds = (step.columns.start, step.columns.stop)
        columns = kernels.candidate_columns(
            step.q,
            step.abstracts.nodes(step.layer),
            *bounds,
            step.scale,
            max(min(self.max_candidates, MAX_CANDIDATES_ON_DISK), MARGIN * step.num_columns),
            self._last_winners(step.layer),
            step.turns,
            step.style,
        )
        mass = step.mass(step.q, columns)
        best = mass.topk(min(step.num_columns, len(columns))).indices
        count = len(best)
        step.out[:count] = columns[best].sort().values
        return count

    def reset(self) -> None:
        """See `Selector`."""
        self._num_winners.zero_()
        self._kept.zero_()
