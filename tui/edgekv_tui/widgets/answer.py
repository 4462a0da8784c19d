"""An answer as Markdown. Knows Textual's widget for it, which is loaded only once there is something to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Markdown

from edgekv_tui.widgets.steady import fits, laid_out_once

if TYPE_CHECKING:
    from textual.visual import VisualType
    from textual.widgets.markdown import MarkdownBlock as _Paragraph
else:
    _Paragraph = Markdown.BLOCKS["paragraph_open"]  # Textual does not export it by name


class SteadyParagraph(_Paragraph):
    """A paragraph that is laid out again only when it takes another row."""

    virtual_size = laid_out_once()

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Show `content`."""
        super().update(content, layout=False)
        if layout and not fits(self):
            self.refresh(layout=True)


class Answer(Markdown):
    """The answer's Markdown. A link is shown, never opened: nothing leaves this machine by itself."""

    virtual_size = laid_out_once()
    BLOCKS = {**Markdown.BLOCKS, "paragraph_open": SteadyParagraph}  # noqa: RUF012  Textual's form

    def __init__(self, text: str) -> None:
        super().__init__(text, open_links=False)
