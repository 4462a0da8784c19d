"""The best that any index could do: ranks by the attention that full attention gives. For measurements only.

It reads every key of every step, so it saves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from edgekv.policies.selection.selector import Step


@dataclass(slots=True)
class Oracle(Selector):
    """Ranks by true attention, summed over heads and queries."""

    needs_attended: ClassVar[bool] = True

    def select(self, step: Step) -> int:
        """See `Selector`."""
        assert step.attended is not None, "the engine gives what `needs_attended` asks for"
        return step.keep_best(step.attended())

    def reset(self) -> None:
        """See `Selector`."""
