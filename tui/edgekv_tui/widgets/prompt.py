"""Where a person writes. Knows keys, the messages said before, and pastes too long to look at.

A long paste is folded to a mark of one line; what is sent has the text in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.message import Message
from textual.widgets import TextArea

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events
    from textual.binding import BindingType

FOLD_LINES = 8
FOLD_CHARACTERS = 800


class Prompt(TextArea):
    """A text area that sends with Enter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", priority=True, id="prompt.send"),
        Binding("shift+enter,ctrl+j", "newline", "New line", priority=True, id="prompt.newline"),
    ]

    class Submitted(Message):
        """A person wants to say `text`."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  Textual's word
        super().__init__(id=id, compact=True, highlight_cursor_line=False, placeholder="Say something")
        self._folded: dict[str, str] = {}
        self._num_pastes = 0
        self._said: Sequence[str] = ()
        self._at: int | None = None
        self._draft = ""

    def remember(self, said: Sequence[str]) -> None:
        """What Up goes through, oldest first: this conversation's own messages and no other's."""
        self._said = said
        self._at = None

    @property
    def whole_text(self) -> str:
        """What was written, folded pastes unfolded."""
        text = self.text
        for mark, pasted in self._folded.items():
            text = text.replace(mark, pasted)
        return text

    def replace_all(self, text: str) -> None:
        """Put `text` there instead, folded if it is long."""
        self._folded.clear()
        self.load_text(self._fold(text) if _is_long(text) else text)
        self.move_cursor(self.document.end)

    def action_submit(self) -> None:
        """Send it, unless there is nothing but blanks."""
        text = self.whole_text.strip()
        if text:
            self.post_message(self.Submitted(text))

    def action_newline(self) -> None:
        """A new line where the cursor is."""
        self.insert("\n")

    def empty(self) -> None:
        """After sending."""
        self._folded.clear()
        self._at = None
        self.load_text("")

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        self.insert(self._fold(text) if _is_long(text) else text)

    def action_cursor_up(self, select: bool = False) -> None:
        """One row up; in the first row, the message before."""
        if select or self.wrapped_document.location_to_offset(self.cursor_location).y > 0:
            super().action_cursor_up(select)
        elif self._said and self._at != 0:
            if self._at is None:
                self._draft = self.whole_text
            self._recall(len(self._said) - 1 if self._at is None else self._at - 1)

    def action_cursor_down(self, select: bool = False) -> None:
        """One row down; in the last row, the message after, or what had been begun."""
        row = self.wrapped_document.location_to_offset(self.cursor_location).y
        if select or self._at is None or row < self.wrapped_document.height - 1:
            super().action_cursor_down(select)
        else:
            self._recall(self._at + 1 if self._at + 1 < len(self._said) else None)

    def _recall(self, at: int | None) -> None:
        self.replace_all(self._draft if at is None else self._said[at])
        self._at = at

    def _fold(self, text: str) -> str:
        self._num_pastes += 1
        num_lines = text.count("\n") + 1
        size = f"{num_lines:,} lines" if num_lines > 1 else f"{len(text):,} characters"
        mark = f"[paste {self._num_pastes}: {size}]"
        self._folded[mark] = text
        return mark


def _is_long(text: str) -> bool:
    return len(text) > FOLD_CHARACTERS or text.count("\n") >= FOLD_LINES
