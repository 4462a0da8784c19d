"""One message with its answer. Knows how a turn looks, also while it grows; nothing of where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import VerticalGroup
from textual.message import Message
from textual.widgets import Static

from edgekv_tui.keys import key
from edgekv_tui.lines import detail_line, state_mark
from edgekv_tui.text import shown
from edgekv_tui.widgets.steady import laid_out_once

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from edgekv import Result, Turn
    from edgekv_tui.widgets.answer import Answer


FOLD_LINES = 20
FOLD_CHARACTERS = 2000
PARTS = 3  # of a turn: the message, the answer, the note


def answer_class() -> type[Answer]:
    """The widget that shows Markdown: loading it takes a tenth of the start, and first there is no answer."""
    from edgekv_tui.widgets.answer import Answer  # noqa: PLC0415

    return Answer


class TurnView(VerticalGroup, can_focus=True):
    """One turn; focused it takes keys that concern it."""

    virtual_size = laid_out_once()
    BINDINGS: ClassVar[list[BindingType]] = [
        key("turn.previous", "up,k", "go(-1)", "", "Go to the turn before"),
        key("turn.next", "down,j", "go(1)", "", "Go to the turn after, and back to the prompt"),
        key("turn.details", "enter,d", "ask('details')", "Details", "All that is known of this answer"),
        key("turn.edit", "e", "ask('edit')", "Edit", "Edit this message: asks anew on a branch"),
        key("turn.copy", "c", "ask('copy')", "Copy", "Copy this answer"),
        key("turn.branches", "b", "ask('branches')", "Branches", "Go to another branch"),
        key("turn.fold", "f", "fold", "Fold", "Show all of a long message, or fold it again"),
    ]

    class Asked(Message):
        """A person asked for `what` ("details", "edit", "copy", "branches") about a turn."""

        def __init__(self, view: TurnView, what: str) -> None:
            super().__init__()
            self.view = view
            self.what = what

    class Left(Message):
        """The focus shall go `step` turns further."""

        def __init__(self, view: TurnView, step: int) -> None:
            super().__init__()
            self.view = view
            self.step = step

    def __init__(self, number: int, user: str, answer: str = "", remark: str = "") -> None:
        """`number` is the turn's place in its branch, from 0; `remark` stands below the answer."""
        super().__init__()
        self.number = number
        self.user = user
        self.answer = answer
        self.result: Result | None = None
        self._remarks = [remark] if remark else []
        self._is_whole = False

    @classmethod
    def of(cls, number: int, turn: Turn, branch: str = "") -> TurnView:
        """A turn of the past; `branch` says that there are others in its place."""
        return cls(
            number, turn.user, shown(turn.answer), " · ".join(filter(None, (state_mark(turn), branch)))
        )

    def compose(self) -> ComposeResult:
        """The message, the answer, the note."""
        yield Static(self._folded(), markup=False, classes="user")
        yield answer_class()(self.answer)
        yield Static("\n".join(self._remarks), markup=False, classes="note")

    @property
    def is_there(self) -> bool:
        """Whether it is on the screen with all its parts: a view that is being removed loses them one by one."""
        return self.is_attached and len(self.children) == PARTS

    async def grow(self, text: str) -> None:
        """Show `text`; only what is new of it is laid out."""
        old, self.answer = self.answer, text
        if not text.startswith(old):
            await self.query_one(answer_class()).update(text)
        elif len(text) > len(old):
            await self.query_one(answer_class()).append(text[len(old) :])

    async def end(self, result: Result, branch: str = "") -> None:
        """Show what became of it; `branch` says that there are others in its place."""
        self.result = result
        await self.grow(shown(result.text))
        mark = {"cancelled": "[stopped] ", "length": "[longest answer reached] ", "context": "[window full] "}
        detail = detail_line(result).strip("[]").removeprefix("stopped ")  # the mark says that
        self.remark(mark.get(result.finish_reason, "") + detail)
        if branch:
            self.remark(branch)

    def remark(self, text: str) -> None:
        """Say one thing more below the answer."""
        self._remarks.append(shown(text))
        self.query_one(".note", Static).update("\n".join(self._remarks))

    def action_fold(self) -> None:
        """Show all of a long message, or its beginning again."""
        message = self.query_one(".user", Static)
        self._is_whole = not self._is_whole
        message.update(shown(self.user) if self._is_whole else self._folded())

    def _folded(self) -> str:
        """The message, or where it is long the beginning: laying out a pasted book takes seconds."""
        lines = self.user[:FOLD_CHARACTERS].split("\n")[:FOLD_LINES]
        begin = "\n".join(lines)
        left = len(self.user) - len(begin)
        return shown(begin) + (f"\n… {left:,} more characters; f shows them" if left else "")

    def action_ask(self, what: str) -> None:
        """Tell what was asked for."""
        self.post_message(self.Asked(self, what))

    def action_go(self, step: int) -> None:
        """Hand the focus on."""
        self.post_message(self.Left(self, step))
