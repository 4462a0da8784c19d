"""The Runtime behind the chat, and the conversations it opened. No widgets; all that may wait runs in threads.

Knows the public API. A conversation that cannot be continued (another model made it, another process has the
data directory) is opened to be read, and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING

from edgekv import ConversationError, ConversationInfo, EdgeKVError, Runtime, StoreError
from edgekv_tui.answering import Answering
from edgekv_tui.text import title_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from edgekv import Config, Conversation, Result, Stream, Turn


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
        self.unsent = ""
        self.answering: Answering | None = None
        self.num_answers = 0
        self.reopened_tokens = 0
        self.results: dict[int, Result] = {}  # of answers of this run, by their turn's id
        self._is_idle = asyncio.Event()
        self._is_idle.set()

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

    def send(self, text: str, *, turn: int | None = None) -> Answering:
        """Say `text`; with `turn` in place of that message, on a new branch."""
        at = len(self.history()) if turn is None else turn

        def begin() -> Stream:
            conversation = self._require(text)
            return conversation.stream(text) if turn is None else conversation.stream_edit(turn, text)

        return self._start(text, at, begin)

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

    async def wait(self) -> None:
        """Return once the answer being made, if any, has ended."""
        await self._is_idle.wait()

    def _start(self, user: str, turn: int, begin: Callable[[], Stream]) -> Answering:
        if self.refusal is not None:
            raise ConversationError(self.refusal)
        self.answering = Answering(user, turn=turn)
        self._is_idle.clear()
        self._session.spawn(self._run(self.answering, begin))
        return self.answering

    async def _run(self, answering: Answering, begin: Callable[[], Stream]) -> None:
        try:
            await answering.run(begin)
            self.num_answers += 1
            turns = self.history()
            if answering.result is not None and turns:
                self.results[turns[-1].id] = answering.result
            if self.conversation is not None:
                with contextlib.suppress(EdgeKVError):  # the program may be closing
                    self.conversation.hint(expect="user")
        finally:
            self._is_idle.set()
            self._session.answered(self)

    def _require(self, text: str) -> Conversation:
        """The conversation, made now if this is its first message (called in a thread)."""
        if self.conversation is None:
            self.conversation = self._session.create(title_of(text), private=self.private)
            self.name = self.conversation.name
            self._session.adopt(self)
        return self.conversation


def _nobody_listens() -> None:
    """Before there is a screen."""


class Session:
    """One Runtime, opened when asked to, and the chats of this run by their names.

    `on_change` is called when an answer has ended: the list of conversations may be another one. `spawn` runs
    what follows an answer; whoever sets it sees to errors in it.
    """

    def __init__(self, config: Config, *, durable: bool = True, opener: type[Runtime] = Runtime) -> None:
        self.config = config
        self.durable = durable
        self.model_name = "…"
        self.num_opens = 0
        self._opener = opener
        self._closing = asyncio.Lock()
        self._has_failed = False
        self._runtime: Runtime | None = None
        self._chats: dict[tuple[str, bool], OpenChat] = {}
        self._infos: list[ConversationInfo] | None = None
        self.on_change: Callable[[], None] = _nobody_listens
        self.spawn: Callable[[Coroutine[None, None, None]], object] = asyncio.create_task

    @property
    def is_open(self) -> bool:
        """Whether the model is loaded."""
        return self._runtime is not None

    @property
    def why_closed(self) -> str:
        """What there is to know, and to do, where `is_open` is not so."""
        if self._has_failed:
            return "no model is loaded; Ctrl+P: Use another model, or Load the model again"
        return "the model is still being loaded; wait a moment"

    @property
    def runtime(self) -> Runtime:
        """The Runtime. ConversationError before it is open."""
        if self._runtime is None:
            raise ConversationError(self.why_closed)
        return self._runtime

    @property
    def degraded(self) -> str | None:
        """Why nothing is kept on disk, or None."""
        return None if self._runtime is None else self._runtime.degraded

    async def open(self, passphrase: Callable[[str], str]) -> None:
        """Load the model; `passphrase` answers questions, in a thread. Raises what `Runtime` raises."""
        self._has_failed = False
        try:
            self._runtime = await asyncio.to_thread(
                self._opener, config=self.config, durable=self.durable, passphrase=passphrase
            )
        except EdgeKVError:
            self._has_failed = True
            raise
        self.num_opens += 1
        self.model_name = self._runtime.stats().model

    async def infos(self, *, again: bool = True) -> list[ConversationInfo]:
        """The kept conversations, last used first: read `again` (every turn is opened), or as they are known."""
        if again or self._infos is None:
            self._infos = await asyncio.to_thread(self.runtime.conversations)
        return self._infos

    def answered(self, chat: OpenChat) -> None:
        """`chat` was used now: the list is brought up to date without reading it."""
        if self._infos is not None and chat.conversation is not None and not chat.is_in_memory:
            now, infos = time.time(), [info for info in self._infos if info.name != chat.name]
            found = next((info for info in self._infos if info.name == chat.name), None)
            found = found or ConversationInfo(chat.name, self.model_name, 0, created=now, updated=now)
            found = dataclasses.replace(found, updated=now, num_turns=len(chat.conversation.turns()))
            self._infos = [found, *infos]
        self.on_change()

    def in_memory(self) -> list[OpenChat]:
        """Conversations of this run that are not kept, newest first: private ones, and all where nothing can be."""
        kept = {info.name for info in self._infos or ()}
        return [
            chat
            for chat in reversed(self._chats.values())
            if chat.private or (chat.is_in_memory and chat.name not in kept)
        ]

    def num_answers(self, name: str) -> int:
        """How many answers the kept conversation `name` got in this run."""
        chat = self._chats.get((name, False))
        return 0 if chat is None else chat.num_answers

    def draft(self, *, private: bool = False) -> OpenChat:
        """A new conversation that begins with its first message."""
        private = private or not self.durable
        return OpenChat(self, "private chat" if private else "new chat", private=private)

    async def enter(self, name: str, *, private: bool = False) -> OpenChat:
        """The conversation `name`: to be continued if possible, else to be read."""
        found = self._chats.get((name, private))
        if found is None:
            found = await asyncio.to_thread(self._enter, name)
            self._chats[name, private] = found
        return found

    def create(self, title: str, *, private: bool) -> Conversation:
        """A new conversation called `title`, or `title 2` and so on where that is taken (in a thread)."""
        runtime = self.runtime
        taken = {name for name, _ in self._chats} | set(runtime.names())
        name, number = title, 1
        while name in taken:
            number += 1
            name = f"{title} {number}"
        if private or runtime.degraded is None:
            return runtime.conversation(name, private=private)
        return runtime.conversation(name, keep=False)

    def adopt(self, chat: OpenChat) -> None:
        """`chat` has its name now."""
        self._chats[chat.name, chat.private] = chat

    async def rename(self, chat: OpenChat, name: str) -> None:
        """Give `chat` another name; a draft takes it with its first message."""
        if chat.conversation is not None:
            await asyncio.to_thread(self.runtime.rename, chat.name, name, private=chat.conversation.private)
            self._chats.pop((chat.name, chat.private), None)
            chat.name = name
            self.adopt(chat)

    async def forget(self, chat: OpenChat) -> None:
        """Destroy `chat`; what is being answered is stopped."""
        if chat.answering is not None:
            chat.answering.stop()
        await chat.wait()
        await asyncio.to_thread(self.runtime.forget, chat.name, private=chat.is_in_memory)
        self._chats.pop((chat.name, chat.private), None)

    async def close(self) -> None:
        """Stop what runs, keep it, free the model. Private conversations end; it can be opened again.

        Called twice, both return when all is kept.
        """
        async with self._closing:
            await self._close()

    async def _close(self) -> None:
        runtime, self._runtime = self._runtime, None
        self._chats.clear()
        self._infos = None
        self.model_name = "…"
        if runtime is not None:
            await asyncio.to_thread(runtime.close)

    def _enter(self, name: str) -> OpenChat:
        runtime = self.runtime
        refusal: str | None = None
        try:
            conversation = runtime.conversation(name, private=not self.durable)
        except ConversationError as error:
            conversation = runtime.conversation(name, read_only=True)
            refusal = str(error)
        except StoreError:
            if runtime.degraded is None:
                raise
            conversation = runtime.conversation(name, keep=False)
        chat = OpenChat(self, name, conversation, private=not self.durable, refusal=refusal)
        chat.reopened_tokens = conversation.num_tokens() if refusal is None else 0
        return chat
