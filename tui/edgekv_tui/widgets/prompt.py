"""Where a person writes. Knows keys, the messages said before, and pastes too long to look at.

A long paste is folded to a mark of one line; what is sent has the text in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, ClassVar

from textual.widgets import TextArea

from edgekv_tui.keys import bindings_of, key
from edgekv_tui.written import Written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from textual import events
    from textual.binding import BindingType
    from textual.geometry import Region
    from textual.strip import Strip

FOLD_LINES = 8
FOLD_CHARACTERS = 800
LONGEST_DRAW_S = 0.1
SLOW_CHARACTERS = 50_000
"""In a line as long as this every key takes a tenth of a second."""


class Prompt(TextArea):
    """A text area that sends with Enter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        key("prompt.send", "enter", "submit", "Send", "Send the message"),
        key("prompt.newline", "shift+enter,ctrl+j", "newline", "", "Begin a new line"),
    ]

    def __init__(
        self,
        submit: Callable[[Written], None],
        changed_keys: Mapping[str, str],
        *,
        id: str | None = None,  # noqa: A002  Textual's word
    ) -> None:
        """`changed_keys`: keys by the names of bindings, where they are not those above.

        `submit` takes what is to be said when the prompt is empty already; `give_back` is for what cannot be said
        now. No message of Textual's: it would come later, when another conversation may have been chosen.
        """
        super().__init__(id=id, compact=True, highlight_cursor_line=False, placeholder="Say something")
        self._own_keys = {
            one: binding.action
            for binding in bindings_of(Prompt)
            for one in changed_keys.get(binding.id or "", binding.key).split(",")
        }
        self._submit = submit
        self._folded: dict[str, str] = {}
        self._num_pastes = 0
        self._said: Sequence[str] = ()
        self._at: int | None = None
        self._draft = Written()
        self._is_new = False  # a key whose letter the next frame shows
        self._is_drawn = asyncio.Event()
        self._is_drawn.set()

    def remember(self, said: Sequence[str]) -> None:
        """What Up goes through, oldest first: this conversation's own messages and no other's."""
        self._said = said
        self._at = None

    @property
    def written(self) -> Written:
        """What was written, as it is folded."""
        text = self.text
        return Written(text, {mark: paste for mark, paste in self._folded.items() if mark in text})

    @property
    def whole_text(self) -> str:
        """What was written, folded pastes unfolded."""
        return self.written.whole

    def put(self, written: Written) -> None:
        """Put `written` there instead, folded as it is."""
        self._folded = dict(written.pastes)
        self._at = None
        self.load_text(written.text)
        self.move_cursor(self.document.end)

    def replace_all(self, text: str) -> None:
        """Put `text` there instead, to be edited: it is folded only where keys would become slow."""
        self._replace(text, folds=len(text) > SLOW_CHARACTERS)

    def action_submit(self) -> None:
        """Send it, unless there is nothing but blanks. What is typed from now on is the next message."""
        written = self.written
        if written.whole.strip():
            self.empty()
            self._submit(written)

    def action_newline(self) -> None:
        """A new line where the cursor is."""
        self.insert("\n")

    def give_back(self, written: Written) -> None:
        """Put `written`, which could not be sent, in front of what was written since."""
        self.put(written.before(self.written))

    def empty(self) -> None:
        """Begin anew."""
        self.put(Written())

    async def until_drawn(self) -> None:
        """Wait until the last key is seen, so that what may be drawn later is not laid out before it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_drawn.wait(), LONGEST_DRAW_S)
        self._is_drawn.set()  # waited for once, whatever became of it

    def render_lines(self, crop: Region) -> list[Strip]:
        """As the frame at hand shows it. Asked for sooner, a call after refresh may come after an earlier frame."""
        if self._is_new:
            self._is_new = False
            self.call_after_refresh(self._is_drawn.set)
        return super().render_lines(crop)

    async def _on_key(self, event: events.Key) -> None:
        # Here and not as priority bindings: those overtake letters that wait to be inserted, and a fast writer's
        # last ones would not be sent.
        action = self._own_keys.get(event.key)
        if action is None:
            await super()._on_key(event)
            if event.is_printable:
                self._is_drawn.clear()
                self._is_new = True
            return
        event.prevent_default()
        event.stop()
        (self.action_submit if action == "submit" else self.action_newline)()

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
                self._draft = self.written
            self._recall(len(self._said) - 1 if self._at is None else self._at - 1)

    def action_cursor_down(self, select: bool = False) -> None:
        """One row down; in the last row, the message after, or what had been begun."""
        row = self.wrapped_document.location_to_offset(self.cursor_location).y
        if select or self._at is None or row < self.wrapped_document.height - 1:
            super().action_cursor_down(select)
        else:
            self._recall(self._at + 1 if self._at + 1 < len(self._said) else None)

    def _recall(self, at: int | None) -> None:
        if at is None:
            self.put(self._draft)
            return
        text = self._said[at]
        self._replace(text, folds=_is_long(text))  # else the next Up would go through all of its rows
        self._at = at

    def _replace(self, text: str, *, folds: bool) -> None:
        self._folded = {}
        shown = self._fold(text) if folds else text
        self.put(Written(shown, self._folded))

    def _fold(self, text: str) -> str:
        self._num_pastes += 1
        num_lines = text.count("\n") + 1
        size = f"{num_lines:,} lines" if num_lines > 1 else f"{len(text):,} characters"
        mark = f"[paste {self._num_pastes}: {size}]"
        self._folded[mark] = text
        return mark


def _is_long(text: str) -> bool:
    return len(text) > FOLD_CHARACTERS or text.count("\n") >= FOLD_LINES
