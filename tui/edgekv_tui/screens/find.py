"""Find words in all kept conversations. Knows a line, a list and the search; tells which turn was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgekv import EdgeKVError
from edgekv_tui.screens.dialogs import Dialog
from edgekv_tui.search.index import CLOSE, OPEN
from edgekv_tui.text import one_line, shown

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.worker import Worker

    from edgekv_tui.search.index import Hit
    from edgekv_tui.search.keeper import SearchKeeper


class Find(Dialog["Hit | None"]):
    """Searches while one types; Enter takes the chosen hit."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer(None)", "Back", id="find.back"),
        Binding("down", "move(1)", "Next", show=False, id="find.next"),
        Binding("up", "move(-1)", "Previous", show=False, id="find.previous"),
    ]

    def __init__(self, keeper: SearchKeeper) -> None:
        super().__init__()
        self._keeper = keeper
        self._hits: list[Hit] = []

    def compose(self) -> ComposeResult:
        """The words above what was found."""
        with Vertical(classes="dialog wide"):
            yield Input(placeholder="Words to find in all kept conversations")
            yield OptionList(markup=False, compact=True)
            yield Static("", markup=False, classes="hint")

    def on_mount(self) -> None:
        """Read what is new, and search meanwhile in what there is."""
        self.query_one(Input).focus()
        _: Worker[None] = self.run_worker(self._refresh, group="refresh", exclusive=True)

    async def _refresh(self) -> None:
        try:
            async for done, total in self._keeper.refresh():
                self._say(f"reading conversation {done + 1} of {total}…" if done < total else "")
        except EdgeKVError as error:  # the model is still being loaded, or the chat is being left
            self._say(str(error))
            return
        await self._search()

    @on(Input.Changed)
    def _type(self) -> None:
        _: Worker[None] = self.run_worker(self._search, group="search", exclusive=True)

    async def _search(self) -> None:
        words = self.query_one(Input).value
        self._hits = await self._keeper.find(words)
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(_row(hit)) for hit in self._hits])
        if self._hits:
            options.highlighted = 0
        if words.strip():
            self._say(f"{len(self._hits)} found · Enter opens" if self._hits else "nothing found")

    def _say(self, text: str) -> None:
        whole = "" if self._keeper.is_whole else " · not everything fits into the search's memory"
        self.query_one(".hint", Static).update(text + whole)

    def action_move(self, step: int) -> None:
        """Through the hits, while the line keeps the focus."""
        options = self.query_one(OptionList)
        (options.action_cursor_down if step > 0 else options.action_cursor_up)()

    @on(Input.Submitted)
    def _take(self) -> None:
        at = self.query_one(OptionList).highlighted
        if at is not None and at < len(self._hits):
            self.action_answer(self._hits[at])

    @on(OptionList.OptionSelected)
    def _take_clicked(self, message: OptionList.OptionSelected) -> None:
        self.action_answer(self._hits[message.option_index])


def _row(hit: Hit) -> Content:
    parts: list[str | tuple[str, str]] = [(f"{one_line(hit.name, 30)}  ", "bold")]
    for at, piece in enumerate(" ".join(hit.excerpt.split()).split(OPEN)):
        found, _, rest = piece.partition(CLOSE) if at else ("", "", piece)
        parts += [(shown(found), "$text-accent bold"), shown(rest)]
    return Content.assemble(*parts)
