"""A conversation as Markdown, for reading. Knows turns; not where the text goes. It is not encrypted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgekv.conversation.turns import Turn


def markdown_lines(name: str, turns: Iterable[Turn]) -> Iterator[str]:
    """The title, then a block for each of `turns`; what is unusual about an answer stands behind its heading."""
    yield f"# {name}"
    for turn in turns:
        mark = "" if turn.state == "complete" else f" *[{turn.state}]*"
        mark += " *[rebuilt]*" if turn.is_rebuilt else ""
        yield f"\n## You\n\n{turn.user}\n\n## Answer{mark}\n\n{turn.answer}"
