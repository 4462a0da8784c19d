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
        self._rows: list[tuple[str, bool]] = []

    def show(
        self, infos: Sequence[ConversationInfo], in_memory: Sequence[OpenChat], current: tuple[str, bool]
    ) -> None:
        """All there are; `current` is marked."""
        now = time.time()
        self._rows = [(chat.name, chat.private) for chat in in_memory]
        self._rows += [(info.name, False) for info in infos]
        marks = ["private" if chat.private else "not kept" for chat in in_memory]
        marks += [_mark(info, now) for info in infos]
        highlighted = self.highlighted
        self.clear_options()
        for row, mark in zip(self._rows, marks, strict=True):
            self.add_option(Option(_row(row[0], mark, is_current=row == current, is_private=row[1])))
        if self._rows:
            self.highlighted = min(highlighted or 0, len(self._rows) - 1)
        self.border_title = f"{len(self._rows)} chats"

    @on(OptionList.OptionSelected)
    def _pick(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        name, private = self._rows[message.option_index]
        self.post_message(self.Picked(name, private=private))


def _mark(info: ConversationInfo, now: float) -> str:
    return "damaged" if info.is_damaged else when(info.updated, now)


def _row(name: str, mark: str, *, is_current: bool, is_private: bool) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    style = "bold" if is_current else ""
    lead = "● " if is_current else "  "
    grid.add_row(Text(lead + one_line(name, 200), style), Text(mark, "magenta" if is_private else "dim"))
    return grid
