"""The list of conversations. Knows their names and when they were used last; tells which one was picked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from textual import on
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from edgekv_tui.text import one_line, when

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv import ConversationInfo
    from edgekv_tui.openchat import OpenChat


class _Row(Option):
    """One conversation: it keeps its name while the list around it changes."""

    def __init__(self, name: str, mark: str, *, is_current: bool, is_private: bool) -> None:
        super().__init__(_drawn(name, mark, is_current=is_current, is_private=is_private))
        self.key = (name, is_private)


class ChatList(OptionList):
    """Conversations of this run that are in memory only, then the kept ones, last used first."""

    class Picked(Message):
        """A person picked the conversation `name`."""

        def __init__(self, name: str, *, private: bool) -> None:
            super().__init__()
            self.name = name
            self.private = private

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  Textual's word
        super().__init__(id=id, markup=False, compact=True)

    def show(
        self, infos: Sequence[ConversationInfo], in_memory: Sequence[OpenChat], current: tuple[str, bool]
    ) -> None:
        """All there are, `current` is marked. While a person is in the list, its cursor stays with its row."""
        now = time.time()
        rows = [
            (chat.name, chat.private, "private" if chat.private else "not kept") for chat in in_memory
        ] + [(info.name, False, _mark(info, now)) for info in infos]
        keys = [(name, private) for name, private, _ in rows]
        at = self.highlighted or 0
        before = self.highlighted_option
        has_hand = self.screen.focused in {self, None}  # none while another window is in front
        if has_hand and isinstance(before, _Row) and before.key in keys:
            at = keys.index(before.key)
        self.clear_options()
        self.add_options(
            _Row(name, mark, is_current=(name, private) == current, is_private=private)
            for name, private, mark in rows
        )
        if rows:
            self.highlighted = min(at, len(rows) - 1)
        self.border_title = f"{len(rows)} chats"

    @on(OptionList.OptionSelected)
    def _pick(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        assert isinstance(message.option, _Row)
        name, private = message.option.key
        self.post_message(self.Picked(name, private=private))


def _mark(info: ConversationInfo, now: float) -> str:
    return "damaged" if info.is_damaged else when(info.updated, now)


def _drawn(name: str, mark: str, *, is_current: bool, is_private: bool) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    style = "bold" if is_current else ""
    lead = "● " if is_current else "  "
    grid.add_row(Text(lead + one_line(name, 200), style), Text(mark, "magenta" if is_private else "dim"))
    return grid
