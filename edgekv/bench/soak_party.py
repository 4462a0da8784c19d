"""Random conversations of one Runtime: said to, edited, asked again, switched, begun, forgotten; all from one seed.

Knows the public API and token counts; keeps no figures of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from edgekv.bench.inside import decode_ids

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from edgekv.bench.text import Text
    from edgekv.conversation.conversation import Conversation
    from edgekv.events import Result
    from edgekv.runtime import Runtime

KEPT, PRIVATE = 12, 3  # at most so many of each
LONGEST_MESSAGE, LONGEST_ANSWER = 700, 24


@dataclass(slots=True)
class Counts:
    """What happened; tokens are those that were computed, reused ones left out."""

    steps: int = 0
    tokens: int = 0
    reused_tokens: int = 0
    longest_context: int = 0
    selected_answers: int = 0
    begun: int = 0
    branched: int = 0
    forgotten: int = 0
    evictions: int = 0
    damaged_leaves: int = 0

    def add(self, result: Result) -> None:
        """Count one answer in."""
        usage = result.usage
        self.tokens += usage.prompt_tokens - usage.reused_tokens + usage.completion_tokens
        self.reused_tokens += usage.reused_tokens
        self.longest_context = max(self.longest_context, usage.prompt_tokens + usage.completion_tokens)
        self.selected_answers += result.exactness == "selected"
        self.damaged_leaves += result.cache.damaged_leaves
        self.evictions += sum("no room on disk" in notice for notice in result.notices)


@dataclass(slots=True)
class Party:
    """Who talks. A kept conversation is cut by an edit or forgotten near `longest` tokens; a private one, which no
    disk takes, near `longest_private`.
    """

    runtime: Runtime
    text: Text
    rng: random.Random
    longest: int
    longest_private: int
    counts: Counts = field(default_factory=Counts)
    chats: list[Conversation] = field(default_factory=list)

    def step(self) -> None:
        """One thing that somebody does."""
        self.counts.steps += 1
        act = self.rng.choices(self._acts, self._weights)[0]
        act(self)

    def _begin(self) -> None:
        private = self.rng.random() < 0.25
        same = [chat for chat in self.chats if chat.private == private]
        if len(same) >= (PRIVATE if private else KEPT):
            self._drop(self.rng.choice(same))
        name = f"soak {self.counts.begun}"
        self.counts.begun += 1
        chat = self.runtime.conversation(name, private=private)
        self.chats.append(chat)
        self._say(chat)

    def _talk(self) -> None:
        if not self.chats:
            self._begin()
            return
        rank = min(
            len(self.chats) - 1, int(self.rng.paretovariate(0.7)) - 1
        )  # some are used much more than others
        chat = self.chats[-1 - rank]
        limit = self.longest_private if chat.private else self.longest
        if chat.num_tokens() + LONGEST_MESSAGE + LONGEST_ANSWER + 50 > limit:
            if self.rng.random() < 0.5:
                self._drop(chat)
                self._begin()
            else:
                self._edit(chat, self.rng.randrange(max(1, len(chat.history()) // 2)))
            return
        self._say(chat)

    def _branch(self) -> None:
        chat = self._some()
        if chat is not None:
            self._edit(chat, self.rng.randrange(len(chat.history())))

    def _again(self) -> None:
        chat = self._some()
        if chat is not None:
            self.counts.branched += 1
            self.counts.add(chat.regenerate(max_tokens=self._answer(), seed=self.counts.steps))

    def _switch(self) -> None:
        chat = self._some()
        if chat is not None:
            chat.switch(self.rng.choice(chat.branches()))

    def _forget(self) -> None:
        if self.chats:
            self._drop(self.rng.choice(self.chats))

    def _some(self) -> Conversation | None:
        """A conversation to branch; the answer may grow it by what it was cut by, no more."""
        grown = [chat for chat in self.chats if chat.history()]
        return self.rng.choice(grown) if grown else None

    def _say(self, chat: Conversation) -> None:
        self.counts.add(chat.send(self._message(), max_tokens=self._answer(), seed=self.counts.steps))

    def _edit(self, chat: Conversation, turn: int) -> None:
        self.counts.branched += 1
        message = self._message()
        self.counts.add(chat.edit(turn, message, max_tokens=self._answer(), seed=self.counts.steps))

    def _drop(self, chat: Conversation) -> None:
        self.runtime.forget(chat.name, private=chat.private)
        self.chats.remove(chat)
        self.counts.forgotten += 1

    def _message(self) -> str:
        """5 to 700 tokens of the text, short ones more often; empty never."""
        length = min(LONGEST_MESSAGE, 4 + int(self.rng.expovariate(1 / 180)))
        start = self.rng.randrange(max(1, len(self.text.ids) - length))
        return decode_ids(self.runtime, self.text.ids[start : start + length]).strip() or "and"

    def _answer(self) -> int:
        return self.rng.randrange(1, LONGEST_ANSWER + 1)

    _acts: ClassVar[tuple[Callable[[Party], None], ...]] = (_talk, _begin, _branch, _again, _switch, _forget)
    _weights: ClassVar[tuple[int, ...]] = (72, 8, 8, 4, 5, 3)
