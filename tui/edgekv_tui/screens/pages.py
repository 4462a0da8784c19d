"""Pages to read over the main screen: the keys, what is known of an answer. Knows text; others make it.

What goes on is drawn again while one looks at it, and asked for no longer than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from edgekv import EdgeKVError
from edgekv_tui.screens.dialogs import Dialog
from edgekv_tui.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

Row = tuple[str, str]
"""A name and its value; a name alone is a heading."""
EVERY_S = 0.5


class Page(Dialog[None]):
    """Rows under a title, to be scrolled.

    `again` gives them as they are now, twice a second.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1,f3,f4", "answer(None)", "Back", id="page.back")
    ]

    def __init__(
        self, title: str, rows: Sequence[Row], *, again: Callable[[], Sequence[Row]] | None = None
    ) -> None:
        super().__init__()
        self._title = title
        self._rows = rows
        self._again = again

    def compose(self) -> ComposeResult:
        """The title above the rows."""
        with Vertical(classes="dialog"):
            yield Static(shown(self._title), markup=False, classes="heading")
            with VerticalScroll(can_focus=True):
                yield Static(shown(self._text()), markup=False, id="rows")
            yield Static("Esc: back", markup=False, classes="hint")

    def on_mount(self) -> None:
        """Arrow keys scroll."""
        self.query_one(VerticalScroll).focus()
        if self._again is not None:
            self.set_interval(EVERY_S, self._look)

    def _look(self) -> None:
        assert self._again is not None, "the clock runs for nobody else"
        try:
            rows = self._again()
        except EdgeKVError:
            return  # the program is being left: what was known last stays
        if rows != self._rows:
            self._rows = rows
            self.query_one("#rows", Static).update(shown(self._text()))

    def _text(self) -> str:
        width = max((len(name) for name, value in self._rows if value), default=0)
        return "\n".join(f"{name:<{width}}  {value}" if value else f"\n{name}" for name, value in self._rows)
