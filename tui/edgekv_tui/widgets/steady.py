"""Text that changes many times a second, mostly within the rows that it has.

Knows when a new text takes other rows. A layout of the screen goes over every widget of the transcript, seen or
not, and a key that is pressed meanwhile waits for it; a new text in the same rows needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.geometry import Size
from textual.reactive import Reactive

if TYPE_CHECKING:
    from textual.widgets import Static


def fits(widget: Static) -> bool:
    """Whether `widget`, as wide as it is, takes as many rows for its text as it has."""
    room = widget.content_size
    return room.width > 0 and room.height == widget.get_content_height(room, room, room.width)


def laid_out_once() -> Reactive[Size]:
    """A widget's `virtual_size` that asks for no layout: it is what a layout has just found.

    Textual's own asks for a second one of the whole screen after each new row. It is needed where the size makes
    a scrollbar appear, and that asks for one by itself.
    """
    return Reactive(Size(0, 0), layout=False)
