"""Text that changes many times a second, mostly within the rows that it has.

Knows when a new text takes other rows. A layout of the screen goes over every widget of the transcript, seen or
not, and a key that is pressed meanwhile waits for it; a new text in the same rows needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Markdown

if TYPE_CHECKING:
    from textual.visual import VisualType
    from textual.widgets import Static
    from textual.widgets.markdown import MarkdownBlock as _Paragraph
else:
    _Paragraph = Markdown.BLOCKS["paragraph_open"]  # Textual does not export it by name


def fits(widget: Static) -> bool:
    """Whether `widget`, as wide as it is, takes as many rows for its text as it has."""
    room = widget.content_size
    return room.width > 0 and room.height == widget.get_content_height(room, room, room.width)


class SteadyParagraph(_Paragraph):
    """A paragraph that is laid out again only when it takes another row."""

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Show `content`."""
        super().update(content, layout=False)
        if layout and not fits(self):
            self.refresh(layout=True)
