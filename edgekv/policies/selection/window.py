"""Sink and window only, what StreamingLLM keeps (arXiv 2309.17453): the floor every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from edgekv.policies.selection.selector import Step


@dataclass(slots=True)
class Window(Selector):
    """Chooses the columns right before the window."""

    def select(self, step: Step) -> int:
        """See `Selector`."""
        first = max(step.columns.start, step.columns.stop - step.num_columns)
        count = step.columns.stop - first
        torch.arange(first, step.columns.stop, dtype=torch.int32, out=step.out[:count])
        return count

    def reset(self) -> None:
        """See `Selector`."""
