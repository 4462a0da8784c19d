"""The turns of one conversation, newest at the bottom. Mounts only the last ones; earlier ones come when asked for.

Follows a growing answer until the person scrolls away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widgets import Static

from edgekv_tui.widgets.steady import laid_out_once
from edgekv_tui.widgets.turn import TurnView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.worker import Worker

    from edgekv import Turn

MOUNTED_TURNS = 12
"""A turn is two messages. Layout takes time for what is mounted, seen or not."""


class Transcript(VerticalScroll, can_focus=False):
    """A scrolling list of `TurnView`s."""

    virtual_size = laid_out_once()

    class Ended(Message):
        """The focus left the last turn downwards."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  Textual's word
        super().__init__(id=id)
        self._turns: Sequence[Turn] = ()
        self._marks: Mapping[int, str] = {}
        self._first = 0

    def on_mount(self) -> None:
        """Stay at the end."""
        self.anchor()

    def on_resize(self) -> None:
        """There may be more room than what is mounted takes."""
        self.call_after_refresh(self._fill)

    async def show(self, turns: Sequence[Turn], marks: Mapping[int, str], *, empty: str = "") -> None:
        """Another conversation, or another branch of this one.

        `marks` say of turns, by their ids, that there are others in their place; `empty` stands where there
        are no turns.
        """
        self._turns = turns
        self._marks = marks
        self._first = max(0, len(turns) - MOUNTED_TURNS)
        async with self.batch():
            await self.remove_children()
            if not self.is_attached:
                return  # the program is being left
            views = self._make(range(self._first, len(turns)))
            await self.mount_all([*self._earlier(), *views])
            if not turns and empty and self.is_attached:
                await self.mount(Static(empty, markup=False, classes="empty"))
        self.anchor()
        self.call_after_refresh(self._fill)

    async def begin(self, before: Sequence[Turn], user: str) -> TurnView:
        """A new turn below the turns `before` it; what was shown behind them is on another branch now."""
        self._turns, number = before, len(before)
        for child in self.query(".empty").results(Static):
            await child.remove()
        for view in self.views:
            if view.number >= number:
                await view.remove()
        view = TurnView(number, user)
        await self.mount(view)
        self.anchor()
        await self._unmount_surplus()
        return view

    async def _unmount_surplus(self) -> None:
        surplus = len(self.views) - 2 * MOUNTED_TURNS
        if surplus > 0:
            self._first += surplus
            await self.query_children(".earlier").remove()
            for old in self.views[:surplus]:
                await old.remove()
            await self.mount_all(self._earlier(), before=0)

    @property
    def views(self) -> list[TurnView]:
        """The mounted turns, oldest first."""
        return list(self.query_children(TurnView))

    async def reveal(self, number: int) -> None:
        """Mount turn `number` if need be, and put the focus on it."""
        while number < self._first:
            await self.show_earlier()
        for view in self.views:
            if view.number == number:
                view.focus(scroll_visible=False)
                if self.max_scroll_y > 0:  # else everything is seen already
                    self.release_anchor()
                    # Behind what `show_earlier` does after the same refresh.
                    self.call_after_refresh(self.scroll_to_widget, view, animate=False, top=True)

    async def show_earlier(self) -> None:
        """Mount some more turns at the top, and keep what is seen where it is."""
        first = max(0, self._first - MOUNTED_TURNS)
        new = self._make(range(first, self._first))
        if not new:
            return
        below = self.max_scroll_y - self.scroll_y
        self._first = first
        async with self.batch():
            for label in self.query(".earlier").results(Static):
                await label.remove()
            await self.mount_all([*self._earlier(), *new], before=0)
        self.release_anchor()
        self.call_after_refresh(lambda: self.scroll_to(y=self.max_scroll_y - below, animate=False))
        self.call_after_refresh(self._fill)

    def watch_scroll_y(self, old: float, new: float) -> None:
        """Earlier turns come when the top is reached."""
        super().watch_scroll_y(old, new)
        if new <= 0 < old:
            self._ask_for_earlier()

    def _fill(self) -> None:
        """Where everything is seen nobody can scroll to ask for more."""
        if self.max_scroll_y == 0:
            self._ask_for_earlier()

    def _ask_for_earlier(self) -> None:
        if self._first > 0:
            _: Worker[None] = self.run_worker(self.show_earlier, group="earlier", exclusive=True)

    @on(TurnView.Left)
    def _move_focus(self, message: TurnView.Left) -> None:
        message.stop()
        views = self.views
        at = views.index(message.view) + message.step
        if at >= len(views):
            self.post_message(self.Ended())
        elif at >= 0:
            self.screen.set_focus(views[at])

    def _make(self, numbers: range) -> list[TurnView]:
        turns = self._turns
        return [TurnView.of(at, turns[at], self._marks.get(turns[at].id, "")) for at in numbers]

    def _earlier(self) -> list[Static]:
        text = f"↑ {self._first:,} earlier turns"
        return [Static(text, markup=False, classes="earlier")] if self._first else []
