"""The live map of memory: three tiers against their limits, where this conversation lies, what moved and why.

Knows how to draw snapshots; asks for them twice a second while it is on the screen, and never waits for an engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from edgekv import EdgeKVError
from edgekv_tui.lines import made_line
from edgekv_tui.moves import clock, times
from edgekv_tui.text import bar, one_line, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekv import CacheUse, Move, Result
    from edgekv_tui.openchat import OpenChat
    from edgekv_tui.session import Session

Part = str | tuple[str, str]
LETTERS = {"D": ("█", "$success"), "H": ("▓", "$warning"), "S": ("▒", "$primary"), "-": ("·", "$error")}
COLUMN_TOKENS = 16
MOST_MAP_ROWS = 6
MOST_MOVES = 6
EVERY_S = 0.5


class MemoryPanel(Static):
    """A column at the right, or a page of its own where there is no room for one."""

    def __init__(self, session: Session, *, id: str | None = None) -> None:  # noqa: A002  Textual's word
        super().__init__("", markup=False, id=id)
        self._session = session
        self._chat: OpenChat | None = None
        self._drawn: list[Part] = []

    def on_mount(self) -> None:
        """Look again and again."""
        self.set_interval(EVERY_S, self.look)

    def show(self, chat: OpenChat) -> None:
        """From now on `chat` is the conversation that is drawn."""
        self._chat = chat
        self.look()

    def look(self) -> None:
        """Draw what is now."""
        chat = self._chat
        if chat is None or not self.is_on_screen:
            return
        try:
            parts = list(memory_parts(self._session, chat, self.content_size.width))
        except EdgeKVError as error:  # no model is loaded, or the program is being left
            parts = [("Memory\n", "bold $text-accent"), (str(error), "$text-muted")]
        if parts != self._drawn:
            self._drawn = parts
            self.update(Content.assemble(*parts), layout=False)  # its size is the screen's, whatever it says


def memory_parts(session: Session, chat: OpenChat, width: int) -> Iterator[Part]:
    """What the panel says, in parts with their styles."""
    runtime = session.runtime
    yield from _tiers(runtime.stats().cache, width)
    where = "" if chat.conversation is None else chat.conversation.where()
    yield from _map(where, width)
    yield from _budget(chat.last_result, width)
    yield from _moves(runtime.moves(), width)


def _heading(text: str) -> Part:
    return (f"\n{text}\n", "bold $text-accent")


def _tiers(use: CacheUse, width: int) -> Iterator[Part]:
    yield ("Memory\n", "bold $text-accent")
    rows = (
        ("device", "$success", use.device_bytes, use.device_limit_bytes),
        ("host", "$warning", use.host_bytes, use.host_limit_bytes),
        ("disk", "$primary", use.disk_bytes, use.disk_limit_bytes),
    )
    for name, style, used, limit in rows:
        text = f" {size(used)} of {size(limit)}" if limit else " none"
        yield f"{name:<7}"
        yield (bar(used, limit, max(4, width - 7 - 22)), f"{style} on $panel")
        yield f"{text}\n"


def _map(letters: str, width: int) -> Iterator[Part]:
    tokens = len(letters) * COLUMN_TOKENS
    yield _heading("This conversation" + (f": {tokens:,} tokens" if letters else ""))
    if not letters:
        yield ("not used in this run yet\n", "$text-muted")
        return
    cells = max(8, width) * MOST_MAP_ROWS
    per_cell = -(-len(letters) // cells)
    drawn = [_lowest(letters[at : at + per_cell]) for at in range(0, len(letters), per_cell)]
    for row in range(0, len(drawn), max(8, width)):
        yield from (LETTERS[letter] for letter in drawn[row : row + max(8, width)])
        yield "\n"
    names = {"D": "device", "H": "host", "S": "disk", "-": "computed again"}
    for letter, name in names.items():
        if letter in letters:
            yield LETTERS[letter]
            yield f" {name} {letters.count(letter) * COLUMN_TOKENS:,}  "
    yield "\n"


def _lowest(letters: str) -> str:
    """What a cell shows of many columns: the one farthest away."""
    return max(letters, key="DHS-".index)


def _budget(result: Result | None, width: int) -> Iterator[Part]:
    yield _heading("Last answer")
    if result is None:
        yield ("none in this run yet\n", "$text-muted")
        return
    if not result.usage.completion_tokens:  # then there was no step either
        yield made_line(result) + "\n"
        return
    context = result.usage.prompt_tokens + result.usage.completion_tokens
    attended = result.attention.mean_tokens or context
    kept = result.attention.mass_kept
    yield f"{result.exactness}" + (f" · {kept:.1%} of the attention kept\n" if kept is not None else "\n")
    yield (bar(attended, context, max(8, width)), "$accent on $panel")
    yield f"\neach step read {attended:,.0f} of {context:,} tokens\n"
    timings = result.timings
    speed = f"{timings.decode_tokens_per_s:,.1f} tokens/s · " if result.usage.completion_tokens > 1 else ""
    yield f"{speed}first after {timings.ttft_s:.2f} s\n"


def _moves(moves: Sequence[Move], width: int) -> Iterator[Part]:
    yield _heading("Moved lately")
    if not moves:
        yield ("nothing had to give way\n", "$text-muted")
    for move in reversed(moves[-MOST_MOVES:]):
        line = f"{clock(move.at)} {move.kind} {move.num_tokens:,}{times(move)}"
        yield one_line(f"{line} · {move.name or 'another'} · {move.why}", max(20, width)) + "\n"
