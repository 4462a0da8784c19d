"""What share of attention a step's choice keeps: measured now and then, where no kernel measures it.

Passes that the kernels follow through all layers (`TokenPass`) measure it whenever a layer ranks all columns, and
where a policy weighs all columns for a question, every layer tells it. For other policies the low-bit keys of a few
layers are scored. Knows estimates; attends to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_PASSES = 64  # passes over few tokens between two that are measured
SAMPLE_LAYERS = 6  # of their layers one in so many, others each time: all took a tenth of a short answer


class KeptMass:
    """Of one answer. `measured`: the sum of the shares and their number, float32 [2]."""

    def __init__(self) -> None:
        self.measured = torch.zeros(2)
        self._waits = 0  # passes; of every answer the first is measured
        self._num_samples = 0

    def layers_to_weigh(self, num_layers: int) -> range:
        """Those of the next pass over few tokens."""
        self._waits -= 1
        if self._waits >= 0:
            return range(0)
        self._waits = SAMPLE_PASSES - 1
        self._num_samples += 1
        every = min(SAMPLE_LAYERS, num_layers)
        return range(self._num_samples % every, num_layers, every)

    def note(self, mass: Tensor, chosen: Tensor) -> None:
        """Add a layer's share of attention that falls on what is attended to.

        mass: float32 `[n]`, shares of the columns to choose from; `chosen`: which of these are attended to. What
        they lack to 1 falls on columns that are attended anyway.
        """
        self.measured += torch.tensor([1 - float(mass.sum() - mass[chosen].sum()), 1.0])

    def take(self) -> float | None:
        """Mean share since the last call; None where none was measured."""
        mass, num_measured = self.measured.tolist()
        self.measured.zero_()
        self._waits = 0
        return mass / num_measured if num_measured else None
