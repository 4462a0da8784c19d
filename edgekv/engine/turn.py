"""One request while it runs: its context so far, what was told of it, and what is in flight for it.

Knows ids, text and events; computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv.events import Notice, TextDelta
from edgekv.tiers.arrivals import Arrivals

if TYPE_CHECKING:
    from edgekv.cache.sequence import Sequence
    from edgekv.engine.request import Emit, IsCancelled, Request


@dataclass(slots=True)
class Turn:
    """One request while it runs."""

    request: Request
    emit: Emit
    is_cancelled: IsCancelled
    sequence: Sequence
    context: list[int]  # prompt and answer so far
    started: float
    num_reused: int = 0
    prefill_s: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    damaged_leaves: int = 0
    has_selected: bool = False  # sticky: what was drawn from a selection stays so, whatever is computed again
    arrivals: Arrivals = field(default_factory=Arrivals)
    text: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def answer(self) -> list[int]:
        """Ids generated so far."""
        return self.context[len(self.request.token_ids) :]

    def say(self, text: str) -> None:
        """Hand out new text."""
        if text:
            self.text.append(text)
            self.emit(TextDelta(text, len(self.context) - len(self.request.token_ids)))

    def note(self, message: str) -> None:
        """Tell the user something, once."""
        self.notices.append(message)
        self.emit(Notice(message))
