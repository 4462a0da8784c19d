"""The default: tree nodes skip deserts, low-bit keys rank what is left (kv-path: selection).

Nodes of 8 leaves are only scored where more than `max_candidates` columns are to choose from; what won the step
before stays a candidate, since neighbouring steps choose nearly the same. Every token is ranked for: every second
one only halved the time and lost a needle that exact attention found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import edgekv_kernels as kernels
from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from torch import Tensor

    from edgekv.policies.selection.selector import Step

MAX_CANDIDATES = 512


@dataclass(slots=True)
class Cascade(Selector):
    """Ranks by the estimated attention mass, summed over heads and queries."""

    max_candidates: int = MAX_CANDIDATES
    _winners: dict[int, Tensor] = field(default_factory=dict)

    def select(self, step: Step) -> int:
        """See `Selector`."""
        count = self._rank(step)
        self._winners[step.layer] = step.out[:count].clone()
        return count

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
            max_candidates=self.max_candidates,
            extra=self._winners.get(step.layer),
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
            self.max_candidates // 2,
            self._winners.get(step.layer),
            step.turns,
            step.style,
        )
        step.abstracts.ensure(step.layer, columns.numpy())
        keys = step.abstracts.keys(step.layer)
        mass = kernels.score_leaves(
            step.q, keys, columns, *bounds, step.scale, turns=step.turns, style=step.style
        )
        best = mass.topk(min(step.num_columns, len(columns))).indices
        count = len(best)
        step.out[:count] = columns[best].sort().values
        return count

    def reset(self) -> None:
        """See `Selector`."""
        self._winners.clear()
