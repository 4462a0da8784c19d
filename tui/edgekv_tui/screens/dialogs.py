"""Small questions over the main screen: a line of text, yes or no, one of a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

from textual import on
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static

from edgekv_tui.text import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType


T = TypeVar("T")


class Dialog(ModalScreen[T]):
    """A question that takes one answer: keys pressed while it closes are no second one."""

    _is_answered = False

    def action_answer(self, value: T) -> None:
        """Close with `value`."""
        if not self._is_answered:
            self._is_answered = True
            self.dismiss(value)


class Ask(Dialog[str | None]):
    """A line of text; None where the person leaves with Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "answer(None)", "Back", id="ask.back")]

    def __init__(self, question: str, value: str = "", *, is_secret: bool = False) -> None:
        super().__init__()
        self._question = question
        self._value = value
        self._is_secret = is_secret

    def compose(self) -> ComposeResult:
        """The question and the line."""
        with Vertical(classes="dialog"):
            yield Static(shown(self._question), markup=False)
            yield Input(self._value, password=self._is_secret)
            yield Static("Enter: go on · Esc: back", markup=False, classes="hint")

    @on(Input.Submitted)
    def _answer(self, message: Input.Submitted) -> None:
        self.action_answer(message.value)


class Confirm(Dialog[bool]):
    """Yes or no; only `y` is yes, so that no key pressed twice destroys anything."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="confirm.yes"),
        Binding("escape,n", "answer(False)", "No", id="confirm.no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question."""
        with Vertical(classes="dialog"):
            yield Static(shown(self._question), markup=False)
            yield Static("y: yes · Esc: no", markup=False, classes="hint")


class Choose(Dialog[int | None]):
    """One of `rows`, by its place; None where the person leaves with Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "answer(None)", "Back", id="choose.back")]

    def __init__(self, title: str, rows: Sequence[str], *, hint: str = "Enter: choose · Esc: back") -> None:
        super().__init__()
        self._title = title
        self._rows = rows
        self._hint = hint

    def compose(self) -> ComposeResult:
        """The title above the rows."""
        with Vertical(classes="dialog"):
            yield Static(shown(self._title), markup=False)
            yield OptionList(*(shown(row) for row in self._rows), markup=False, compact=True)
            yield Static(self._hint, markup=False, classes="hint")

    @on(OptionList.OptionSelected)
    def _choose(self, message: OptionList.OptionSelected) -> None:
        self.action_answer(message.option_index)
