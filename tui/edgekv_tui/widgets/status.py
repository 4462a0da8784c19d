"""One line about what happens now: reading, answering, or what there is to know. Knows how to say it only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Static

from edgekv_tui.text import bar, seconds, shown
from edgekv_tui.widgets.steady import fits

if TYPE_CHECKING:
    from edgekv import PrefillProgress
    from edgekv_tui.answering import Answering


class Status(Static):
    """The line above the prompt."""

    def __init__(self, text: str, *, id: str | None = None) -> None:  # noqa: A002  Textual's word
        super().__init__(text, markup=False, id=id)

    def say(self, text: str, *, is_alert: bool = False) -> None:
        """Show `text`; as an alert it stands out."""
        self.set_class(is_alert, "-alert")
        self.update(shown(text), layout=False)
        if not fits(self):
            self.refresh(layout=True)

    def follow(self, answering: Answering) -> None:
        """Show how far an answer is."""
        self.say(_line(answering, self.size.width))


def _line(answering: Answering, width: int) -> str:
    if answering.is_stopping:
        return "stopping…"
    stop = " · Esc stops"
    if answering.first_text_at is not None:
        return f"answering · {answering.num_tokens:,} tokens · {answering.tokens_per_s:.1f} tokens/s{stop}"
    progress = answering.progress
    if progress is None:
        return f"waiting for its turn{stop}"
    if progress.done >= progress.total:
        return f"thinking about {progress.total:,} tokens{_reused(progress)}{stop}"
    left = f" · {seconds(progress.eta_s)} left" if progress.eta_s else ""
    text = f"reading {progress.done:,} of {progress.total:,} tokens{_reused(progress)}{left}{stop}"
    room = min(width - len(text) - 1, 30)
    return f"{bar(progress.done, progress.total, room)} {text}" if room >= 8 else text


def _reused(progress: PrefillProgress) -> str:
    return f" · {progress.reused:,} reused" if progress.reused else ""
