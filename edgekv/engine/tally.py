"""What the passes of one answer attended to, added up for `AttentionUse`. Knows slots and columns; reads no KV."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

MOST_READ = 64  # columns that an answer tells of
MOST_WAITING = 128  # passes whose choices wait to be counted


@dataclass(slots=True)
class AttentionTally:
    """What the passes of one request attended: sums over layers and passes."""

    num_steps: int = 0
    num_tokens: int = 0
    num_leaves: int = 0
    num_device_leaves: float = 0.0
    device_share: float = 0.0  # of the leaves of the pass that was looked at last
    waits: int = 0  # passes until the next is looked at
    slots: list[Tensor] = field(default_factory=list)  # of the pass that runs, a row per layer
    chosen: list[NDArray[np.int32]] = field(default_factory=list)  # columns, of passes over few tokens
    times: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))  # each column was chosen
    num_choosing: int = 0  # layers of those passes

    def note_chosen(self, columns: NDArray[np.int32], num_layers: int) -> None:
        """Columns that so many layers chose; counted many at a time."""
        self.chosen.append(columns)
        self.num_choosing += num_layers
        if len(self.chosen) >= MOST_WAITING:
            self._fold()

    def most_read(self) -> tuple[tuple[int, float], ...]:
        """First positions of the columns that were chosen most, and by which share of layers and steps."""
        self._fold()
        counts = self.times
        most = np.argsort(-counts, kind="stable")[:MOST_READ]
        return tuple(
            (int(at) * LEAF_TOKENS, int(counts[at]) / self.num_choosing) for at in most if counts[at]
        )

    def _fold(self) -> None:
        if self.chosen:
            new = np.bincount(np.concatenate(self.chosen), minlength=len(self.times))
            new[: len(self.times)] += self.times
            self.times = new
            self.chosen.clear()

    def count_leaves(self, first_host: int) -> None:
        """Count those of the pass before by where they lay: once a pass, a count per layer would take its time.

        Slots below `first_host` lie on the device.
        """
        if self.slots:
            slots = torch.cat(self.slots)
            self.num_leaves += len(slots)
            self.num_device_leaves += int((slots < first_host).sum())
            self.slots.clear()
