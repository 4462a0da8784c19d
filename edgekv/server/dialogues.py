"""Which conversation a stateless request goes to: the one that has most of it in memory already.

Knows texts and private conversations. A request brings its whole dialogue along; the conversation that begins
alike is lent to it, and the runtime goes on from the tokens they share. Nothing of them is kept on disk.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv import Conversation, Runtime

MOST_DIALOGUES = 32
MOST_BRANCHES = 200
"""A conversation remembers the text of all its branches; one with more of them begins anew."""


@dataclass(slots=True, eq=False)
class Lent:
    """A conversation, and the texts of the dialogue that it holds the KV of."""

    conversation: Conversation
    texts: list[str] = field(default_factory=list)
    is_pooled: bool = True


class Dialogues:
    """Private conversations for requests; each is lent to one at a time. Any thread may call."""

    def __init__(self, runtime: Runtime, most: int = MOST_DIALOGUES) -> None:
        self._runtime = runtime
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[Lent] = []  # last used last
        self._old: list[Lent] = []

    def lend(self, messages: Sequence[tuple[str, str]], system: str | None) -> Lent:
        """The conversation to answer `messages` with; give it back."""
        texts = [text for _, text in messages]
        with self._lock:
            idle = [(lent, lent.texts) for lent in self._idle]
        # Without the lock: texts may be long, and `give_back` is called by the loop that serves everybody.
        worth = [(self._shared(lent, held, texts, system), lent, held) for lent, held in idle]
        for shared, lent, held in sorted(worth, key=lambda one: one[0], reverse=True):
            if not shared:
                break
            with self._lock:
                if lent in self._idle and lent.texts is held:  # nobody took it meanwhile
                    self._idle.remove(lent)
                    return lent
        return Lent(self._runtime.conversation(private=True, system=system))

    def give_back(self, lent: Lent, texts: list[str] | None) -> None:
        """It now holds `texts` (None: nothing was computed)."""
        if texts is not None:
            lent.texts = texts
        is_spent = not lent.texts or len(lent.conversation.branches()) > MOST_BRANCHES
        with self._lock:
            (self._old if is_spent else self._idle).append(lent)
            if len(self._idle) > self._most:
                self._old.append(self._idle.pop(0))

    def has_old(self) -> bool:
        """Whether there are some to `forget_old`."""
        with self._lock:
            return bool(self._old)

    def forget_old(self) -> None:
        """Give up those that were not used for longest, where there are too many; waits for the engine."""
        while True:
            with self._lock:
                if not self._old:
                    return
                one = self._old.pop()
            self._runtime.forget(one.conversation.name, private=True)

    def _shared(self, lent: Lent, held: list[str], texts: list[str], system: str | None) -> int:
        """Characters it shares with the request; 0 where it would lose more, as what is behind them is dropped."""
        if (system or self._runtime.config.system) != lent.conversation.system:
            return 0
        shared = shared_characters(held, texts)
        return shared if 2 * shared > sum(map(len, held)) else 0


def shared_characters(held: Sequence[str], asked: Sequence[str]) -> int:
    """How many characters two dialogues have in common from the start, whole messages and the beginning of one."""
    shared = 0
    for one, other in zip(held, asked, strict=False):
        if one == other or one.strip() == other.strip():
            shared += len(one)
            continue
        return shared + _common(one, other)
    return shared


def _common(one: str, other: str) -> int:
    """How many first characters are the same, found by halves: letter by letter takes seconds for long texts."""
    same, differs = 0, min(len(one), len(other)) + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differs = middle
    return same
