"""What front ends draw on a terminal and wipe away again. Knows events and streams; no front end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from edgekv.events import PrefillProgress


def can_draw(*streams: TextIO) -> bool:
    """Whether all of them are a terminal that moves its cursor: one called dumb prints every byte that is sent."""
    return os.environ.get("TERM") != "dumb" and all(stream.isatty() for stream in streams)


class ProgressLine:
    """Prefill progress on one line of `out`, if that can be drawn on; gone when cleared."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._can_draw = can_draw(out)
        self._is_shown = False

    def show(self, progress: PrefillProgress) -> None:
        """Draw over the last one."""
        if not self._can_draw or progress.total == 0:
            return
        reused = f", {progress.reused:,} reused" if progress.reused else ""
        eta = f", {progress.eta_s:.0f} s left" if progress.eta_s else ""
        self._out.write(f"\r\x1b[Kreading {progress.done:,} of {progress.total:,} tokens{reused}{eta}")
        self._out.flush()
        self._is_shown = True

    def clear(self) -> None:
        """Leave the line empty."""
        if self._is_shown:
            self._out.write("\r\x1b[K")
            self._out.flush()
            self._is_shown = False
