"""Find stop strings in streamed text.

Knows text only: no tokens, no model. The outcome does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Stopper:
    """Lets text through up to the first stop string, holding back what may still become one.

    The stop string that is complete first wins; of those complete at the same character, the longest.
    `stopped` is True from then on, and nothing more comes out.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take new text; returns what may be shown now."""
        if self.stopped:
            return ""
        if not self._stop:
            return text
        buffer = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := buffer.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self.stopped = True
            self._held = ""
            return buffer[:start]
        keep = max(_partial_match(buffer, stop) for stop in self._stop)
        cut = len(buffer) - keep
        self._held = buffer[cut:]
        return buffer[:cut]

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        held, self._held = self._held, ""
        return held


def _partial_match(buffer: str, stop: str) -> int:
    """Length of the longest end of `buffer` that begins `stop` without completing it."""
    for length in range(min(len(stop) - 1, len(buffer)), 0, -1):
        if buffer.endswith(stop[:length]):
            return length
    return 0
