"""What share of attention a step's choice keeps: measured now and then, where no kernel measures it.

Passes that the kernels follow through all layers (`TokenPass`) measure it whenever a layer ranks all columns; for
the others a layer's low-bit keys are scored for it. Knows estimates; attends to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels

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

    def weigh(
        self,
        q: Tensor,
        keys: Tensor,
        choice: range,
        chosen: Tensor,
        around: Tensor,
        scale: float,
        turns: kernels.Turns | None,
    ) -> None:
        """Add the share of attention of the last of `q` `[T, Hq, D]` that falls on `chosen` and `around`.

        Of the attention to all of `choice` and `around`, columns whose low-bit keys are `keys`.
        """
        mass = kernels.score_among(q[-1:].cpu(), keys, None, around, choice.start, choice.stop, scale, turns)
        lost = float(mass.sum() - mass[chosen.long() - choice.start].sum())
        self.measured += torch.tensor([1 - lost / q.shape[1], 1.0])

    def take(self) -> float | None:
        """Mean share since the last call; None where none was measured."""
        mass, num_measured = self.measured.tolist()
        self.measured.zero_()
        self._waits = 0
        return mass / num_measured if num_measured else None
