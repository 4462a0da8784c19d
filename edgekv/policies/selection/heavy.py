"""Heavy hitters and the most recent, as H2O keeps them (arXiv 2306.14048).

Attention to each column is summed over the queries so far, older ones counting less. H2O drops what it does not
keep; here every column goes on being weighed by its low-bit keys, so one that was passed over may come back.
The sums are what a column has been worth: the order in which columns could leave a tier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from torch import Tensor

    from edgekv.policies.selection.selector import Step


@dataclass(slots=True)
class Heavy(Selector):
    """`recent_share` of the choice goes to the columns before the window, the rest to the heaviest.

    `decay`: what a query counts for once the next one has come.
    """

    recent_share: float = 0.5
    decay: float = 0.98
    _sums: dict[int, Tensor] = field(default_factory=dict)

    def select(self, step: Step) -> int:
        """See `Selector`."""
        columns = step.columns
        sums = self._weigh(step)[columns.start : columns.stop].clone()
        num_recent = int(min(step.num_columns, len(columns)) * self.recent_share)
        sums[len(columns) - num_recent :] = torch.inf
        return step.keep_best(sums)

    def worth(self) -> Tensor:
        """See `Selector`: summed over all layers."""
        num_columns = max((len(sums) for sums in self._sums.values()), default=0)
        total = torch.zeros(num_columns)
        for sums in self._sums.values():
            total[: len(sums)] += sums
        return total

    def reset(self) -> None:
        """See `Selector`."""
        self._sums.clear()

    def _weigh(self, step: Step) -> Tensor:
        """Sums of the layer by column, the step's queries included."""
        first, last = step.columns.start, step.columns.stop
        mass = step.mass(step.q)
        known = self._sums.get(step.layer, torch.empty(0))
        sums = torch.zeros(max(last, len(known)))  # a block's window may begin earlier than a token's did
        sums[: len(known)] = known * self.decay ** len(step.q)
        sums[first:last] += mass
        self._sums[step.layer] = sums
        return sums
