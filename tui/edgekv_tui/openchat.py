"""One conversation of this run: what the screen shows of it, and what it does to it. No widgets.

Knows the public API and answers on their way. Whose model and which files there are is the session's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv import ConversationError, EdgeKVError
from edgekv_tui.answering import Answering
from edgekv_tui.text import title_of
from edgekv_tui.written import Written

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv import Conversation, Result, Stream, Turn
    from edgekv_tui.session import Session


@dataclass(frozen=True, slots=True)
class Unsent:
    """What was begun to be written in a conversation; `turn` is the one whose message it edits."""

    written: Written = field(default_factory=Written)
    turn: Turn | None = None

    def before(self, later: Unsent) -> Unsent:
        """Both, one below the other; the later one where nothing stands in this one."""
        if not self.written.text:
            return later
        return dataclasses.replace(self, written=self.written.before(later.written))

    def is_of(self, history: list[Turn]) -> bool:
        """Whether it can be sent there: what it edits, if anything, is one of these turns."""
        return self.turn is None or any(_is_same(self.turn, turn) for turn in history)

    def here(self, history: list[Turn]) -> Unsent:
        """It, or its words alone where what it edits is not among these turns."""
        return self if self.is_of(history) else dataclasses.replace(self, turn=None)


@dataclass(slots=True)
class Begun:
    """Where a conversation keeps what is unsent in it. It outlives the session: a chat that is still shown, or a
    message on its way, when its session was closed puts it where the chat opened anew finds it.
    """

    unsent: Unsent = field(default_factory=Unsent)


def _is_same(one: Turn, other: Turn) -> bool:
    """Whether both are the same message, whatever became of its answer meanwhile."""
    return (one.id, one.parent, one.user) == (other.id, other.parent, other.user)


def place_of(edited: Turn, history: list[Turn]) -> int:
    """Where the message stands in its branch, from 0. ConversationError if it is not there."""
    for at, turn in enumerate(history):
        if _is_same(edited, turn):
            return at
    raise ConversationError(
        "the message that you edit is not on this branch any more; Enter sends it as a new one"
    )


class OpenChat:
    """One conversation on the screen. A new one is a draft, and kept nowhere, until its first message."""

    def __init__(
        self,
        session: Session,
        name: str,
        conversation: Conversation | None = None,
        *,
        private: bool = False,
        refusal: str | None = None,
    ) -> None:
        self._session = session
        self.name = name
        self.conversation = conversation
        self.private = private
        self.refusal = refusal
        self.begun = Begun()
        self.answering: Answering | None = None
        self._asked: Unsent | None = None
        self.num_answers = 0
        self.reopened_tokens = 0
        self.results: dict[int, Result] = {}  # of answers of this run, by their turn's id
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def taken_up(self, turns: list[Turn], now: Unsent, left: OpenChat, *, keeps_prompt: bool) -> Unsent:
        """What stands in the prompt once this is chosen: `now` stood there in the conversation that is `left`."""
        if left is self or (keeps_prompt and (self.private or not left.private)):
            return self.take_unsent().before(now).here(turns)
        left.unsent = left.unsent.before(now)
        return self.take_unsent().here(turns)

    @property
    def unsent(self) -> Unsent:
        """What was begun to be written, while another conversation is shown."""
        return self.begun.unsent

    @unsent.setter
    def unsent(self, unsent: Unsent) -> None:
        self.begun.unsent = unsent

    def take_unsent(self) -> Unsent:
        """What waits here to be written on and sent: a refused message first."""
        self.put_refused_back()
        unsent, self.unsent = self.unsent, Unsent()
        return unsent

    def put_refused_back(self) -> None:
        """Put a message that was refused in front of what is unsent."""
        refused = self.take_back()
        if refused is not None:
            self.unsent = refused.before(self.unsent)

    @property
    def last_result(self) -> Result | None:
        """What became of the latest answer of this run."""
        return next(reversed(self.results.values()), None)

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being made."""
        return self.answering is not None and not self.answering.has_ended

    @property
    def is_in_memory(self) -> bool:
        """Whether what is said here is kept nowhere: it is private, or a copy because the disk refuses."""
        return self.private if self.conversation is None else self.conversation.private

    def history(self) -> list[Turn]:
        """The turns of the current branch."""
        return [] if self.conversation is None else self.conversation.history()

    def branch_marks(self) -> dict[int, str]:
        """What to say of turns that have others in their place, by turn id: "branch 2 of 3"."""
        places: dict[int | None, list[int]] = {}
        for turn in [] if self.conversation is None else self.conversation.turns():
            places.setdefault(turn.parent, []).append(turn.id)
        return {
            turn_id: f"branch {at} of {len(ids)}"
            for ids in places.values()
            if len(ids) > 1
            for at, turn_id in enumerate(ids, 1)
        }

    def send(self, unsent: Unsent) -> Answering:
        """Say what was written; in place of the message that it edits, on a new branch."""
        history, text = self.history(), unsent.written.whole.strip()
        at = len(history) if unsent.turn is None else place_of(unsent.turn, history)

        def begin() -> Stream:
            conversation = self._require(text)
            return conversation.stream(text) if unsent.turn is None else conversation.stream_edit(at, text)

        return self._start(text, at, begin, unsent)

    def regenerate(self) -> Answering:
        """Answer the last message again. ConversationError if there is none."""
        history = self.history()
        if self.conversation is None or not history:
            raise ConversationError("there is no message yet that could be answered again")
        return self._start(history[-1].user, len(history) - 1, self.conversation.stream_regenerate)

    async def switch(self, turn_id: int) -> None:
        """Go to the branch that has the turn, if the current one has it not; to its newest end."""
        conversation = self.conversation
        if conversation is None or any(turn.id == turn_id for turn in self.history()):
            return
        end = turn_id
        for turn in conversation.turns():  # parents come before their children: the last child wins
            if turn.parent == end:
                end = turn.id
        await asyncio.to_thread(conversation.switch, end)

    @property
    def is_idle(self) -> bool:
        """Whether `wait` would return at once."""
        return self._is_idle.is_set()

    async def wait(self) -> None:
        """Return once the answer being made, if any, has ended."""
        await self._is_idle.wait()

    @property
    def was_refused(self) -> bool:
        """Whether the last message was not even kept: the engine had failed, or the queue was full."""
        answering = self.answering
        if self._asked is None or answering is None or answering.error is None:
            return False
        return all(turn.user != answering.user for turn in self.history()[answering.turn :])

    def take_back(self) -> Unsent | None:
        """The message that was refused, if one was and nobody took it back yet."""
        asked = self._asked if self.was_refused else None
        if asked is not None:
            self._asked = None
        return asked

    def _start(
        self, user: str, turn: int, begin: Callable[[], Stream], asked: Unsent | None = None
    ) -> Answering:
        if self.refusal is not None:
            raise ConversationError(self.refusal)
        self.put_refused_back()
        self.answering = Answering(user, turn=turn)
        self._asked = asked
        self._is_idle.clear()
        self._session.spawn(self._run(self.answering, begin))
        return self.answering

    async def _run(self, answering: Answering, begin: Callable[[], Stream]) -> None:
        try:
            await answering.run(begin)
            self.num_answers += 1
            turns = self.history()
            if answering.result is not None and answering.turn < len(turns):
                self.results[turns[answering.turn].id] = answering.result
            if self.conversation is not None:
                with contextlib.suppress(EdgeKVError):  # the program may be closing
                    self.conversation.hint(expect="user")
        finally:
            if self.answering is answering:  # else the next message was sent already
                self._is_idle.set()
            self._session.answered(self)

    def _require(self, text: str) -> Conversation:
        """The conversation, made now if this is its first message (called in a thread)."""
        if self.conversation is None:
            self.conversation = self._session.create(title_of(text), private=self.private)
            self.name = self.conversation.name
            self._session.adopt(self)
        return self.conversation
