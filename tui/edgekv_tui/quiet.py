"""Looking for garbage, when nobody notices. Knows the interpreter's collector, a timer, and who must not wait.

With a conversation on the screen a full collection takes 200 ms, and while an answer streams there is one every few
seconds, though next to nothing that it looks at has changed. So what there is between two answers is looked at
once, and by the automatic collections not again until the next time: those only go over what came since.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.dom import DOMNode
    from textual.timer import Timer

QUIET_S = 1.0
FULL_EVERY = 100
"""Collections of the middle generation between two automatic full ones: while an answer streams, some 15 s."""


def begin_collecting() -> None:
    """From now on there may be garbage; what there is already is none."""
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_EVERY)
    gc.enable()


def collect_all() -> None:
    """Look at everything, also at what was set aside before: what was thrown away since is given back."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class Quiet:
    """Does one thing once nobody has written for `QUIET_S`; nothing while `is_busy`, whose end asks again."""

    def __init__(self, node: DOMNode, work: Callable[[], None], is_busy: Callable[[], bool]) -> None:
        self._node = node
        self._work = work
        self._is_busy = is_busy
        self._timer: Timer | None = None

    def now(self) -> None:
        """Somebody waits anyway."""
        self._work()

    def ask(self) -> None:
        """It shall be done soon."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self._node.set_timer(QUIET_S, self._do)

    def disturb(self) -> None:
        """Somebody writes: not yet."""
        if self._timer is not None:
            self._timer.reset()

    def _do(self) -> None:
        self._timer = None
        if not self._is_busy():
            self._work()
