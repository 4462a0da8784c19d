"""The Runtime behind the chat, and the conversations it opened. No widgets; all that may wait runs in threads.

Knows the public API. A conversation that cannot be continued (another model made it, another process has the
data directory, there is no model) is opened to be read, and says why.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING

from edgekv import Archive, Closed, ConversationError, ConversationInfo, EdgeKVError, Runtime, StoreError
from edgekv_tui.openchat import Begun, OpenChat

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from edgekv import Config, Conversation, Move, Turn


def _nobody_listens() -> None:
    """Before there is a screen."""


class Session:
    """One Runtime, opened when asked to, and the chats of this run by their names.

    Where the model does not load there is an Archive instead: what is kept is read, searched and exported all the
    same. What was begun to be written outlives both.

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
        self._loading = asyncio.Lock()
        self._opening = 0  # the number of the latest; closing makes it outdated
        self._has_failed = False
        self._runtime: Runtime | None = None
        self._archive: Archive | None = None
        self._drafts: dict[bool, OpenChat] = {}
        self._begun: dict[str, Begun] = {}
        self._chats: dict[tuple[str, bool], OpenChat] = {}
        self._infos: list[ConversationInfo] | None = None
        self._num_changes = 0  # of what there is to list
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
    def shelf(self) -> Runtime | Archive:
        """Where kept conversations are read, model or none. ConversationError before either is open."""
        return self.runtime if self._archive is None else self._archive

    @property
    def can_read(self) -> bool:
        """Whether kept conversations can be read."""
        return self._runtime is not None or self._archive is not None

    @property
    def degraded(self) -> str | None:
        """Why nothing is kept on disk, or None."""
        shelf = self._runtime or self._archive
        return None if shelf is None else shelf.degraded

    async def open(self, passphrase: Callable[[str], str]) -> bool:
        """Load the model; `passphrase` answers questions, in a thread. Raises what `Runtime` raises.

        What is kept can then be read all the same, if it is not its directory that cannot be opened.

        One model is loaded at a time. False where this one is not wanted any more: the session was closed, or is
        being opened anew, since; what it had loaded is freed again.
        """
        self._has_failed = False
        self._opening += 1
        number = self._opening
        try:
            # a thread cannot be cancelled: what it loads must find somebody who frees it
            return await asyncio.shield(asyncio.create_task(self._open(number, passphrase)))
        except asyncio.CancelledError:
            if number == self._opening:
                self._opening += 1
            raise

    async def _open(self, number: int, passphrase: Callable[[str], str]) -> bool:
        async with self._loading:
            async with self._closing:
                pass  # what is being closed has the data directory still
            try:
                if number == self._opening:
                    await self._load(number, passphrase)
            except EdgeKVError:
                if number == self._opening:
                    self._has_failed = True
                    raise
            return number == self._opening

    async def _load(self, number: int, passphrase: Callable[[str], str]) -> None:
        answers: list[str] = []

        def ask(question: str) -> str:
            if number != self._opening:
                raise Closed("the session was closed, or opened anew")
            answers.append(passphrase(question))
            return answers[-1]

        def ask_again(question: str) -> str:
            return answers.pop() if answers else passphrase(question)

        try:
            runtime = await asyncio.to_thread(
                self._opener, config=self.config, durable=self.durable, passphrase=ask
            )
        except StoreError:
            raise
        except EdgeKVError as error:
            del answers[:-1]  # whoever unlocked it for the model need not do so again
            if number == self._opening:
                await self._open_archive(number, error, ask_again)
            raise
        if number != self._opening:
            await asyncio.to_thread(runtime.close)
            return
        self._runtime = runtime
        self.num_opens += 1
        self.model_name = runtime.stats().model

    async def _open_archive(self, number: int, error: EdgeKVError, passphrase: Callable[[str], str]) -> None:
        if self.durable:
            try:
                archive = await asyncio.to_thread(Archive, config=self.config, passphrase=passphrase)
            except EdgeKVError as other:
                # Of the first kind: it says what to offer.
                raise type(error)(f"{error}; and {other}") from other
            if number != self._opening:
                await asyncio.to_thread(archive.close)
                return
            self._archive = archive
            self.num_opens += 1
            self.model_name = "no model"

    async def infos(self, *, again: bool = True) -> list[ConversationInfo]:
        """The kept conversations, last used first: read `again` (every turn is opened), or as they are known."""
        if not again and self._infos is not None:
            return self._infos
        self._num_changes += 1  # an older reading is of no use any more
        shelf, before = self.shelf, -1  # the same one: Closed is raised if that is closed meanwhile
        while before != self._num_changes:  # what is new since may be missing
            before = self._num_changes
            found = await asyncio.to_thread(shelf.conversations)
        self._infos = found
        return found

    @property
    def known_names(self) -> list[str]:
        """The names of the kept conversations, as far as they were read."""
        return [info.name for info in self._infos or ()]

    def moves(self) -> list[Move]:
        """What moved between the tiers in this run; without a model nothing did."""
        return [] if self._runtime is None else self._runtime.moves()

    async def read(self, name: str) -> list[Turn]:
        """All turns of the kept conversation `name`; see `Runtime.conversation` for what it raises."""
        return (await asyncio.to_thread(self._to_read, name)).turns()

    def answered(self, chat: OpenChat) -> None:
        """`chat` was used now: the list is brought up to date without reading it.

        A draft whose first message was refused, while another draft took its place, leaves that message there.
        """
        self._num_changes += 1
        if chat.conversation is None and (draft := self.draft(private=chat.private)) is not chat:
            refused = chat.take_back()
            draft.unsent = draft.unsent if refused is None else refused.before(draft.unsent)
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
        """The conversation that begins with its first message: as long as it has none there is one such."""
        private = private or not self.durable
        found = self._drafts.get(private)
        if found is None or found.conversation is not None or found.is_answering:
            found = OpenChat(self, "private chat" if private else "new chat", private=private)
            self._drafts[private] = found
        return found

    async def enter(self, name: str, *, private: bool = False) -> OpenChat:
        """The conversation `name`: to be continued if possible, else to be read."""
        found = self._chats.get((name, private))
        if found is None:
            found = await asyncio.to_thread(self._enter, name)
            found.begun = self._begun.pop(name, found.begun)
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
            if self._archive is not None:
                await asyncio.to_thread(self._archive.rename, chat.name, name)
            else:
                private = chat.conversation.private
                await asyncio.to_thread(self.runtime.rename, chat.name, name, private=private)
            self._chats.pop((chat.name, chat.private), None)
            chat.name = name
            self.adopt(chat)

    async def forget(self, chat: OpenChat) -> None:
        """Destroy `chat`; what is being answered is stopped."""
        if chat.answering is not None:
            chat.answering.stop()
        await chat.wait()
        if self._archive is not None:
            await asyncio.to_thread(self._archive.forget, chat.name)
        else:
            await asyncio.to_thread(self.runtime.forget, chat.name, private=chat.is_in_memory)
        self._chats.pop((chat.name, chat.private), None)

    async def close(self) -> None:
        """Stop what runs, keep it, free the model. Private conversations end; it can be opened again.

        What was begun to be written in others is there again then.

        Called twice, both return when all is kept. A model that is being loaded is not waited for: nothing was
        said to it. It is freed when it comes, and the next one is loaded after that.
        """
        async with self._closing:
            self._opening += 1
            await self._close()

    async def _close(self) -> None:
        shelf = self._runtime or self._archive
        self._runtime = self._archive = None
        for chat in self._chats.values():  # a message that waits for an answer to be stopped is not sent
            chat.refusal = chat.refusal or self.why_closed
        self._infos = None
        self._num_changes += 1
        self.model_name = "…"
        try:
            if shelf is not None:
                await asyncio.to_thread(shelf.close)
        finally:
            await self._end_chats()

    async def _end_chats(self) -> None:
        """Forget the chats once their answers have ended: only then is it known which messages were refused."""
        while busy := [chat for chat in [*self._chats.values(), *self._drafts.values()] if not chat.is_idle]:
            await busy[0].wait()
        for chat in self._chats.values():
            chat.put_refused_back()
        self._begun |= {chat.name: chat.begun for chat in self._chats.values() if not chat.private}
        self._chats.clear()

    def _to_read(self, name: str) -> Conversation:
        if self._archive is not None:
            return self._archive.conversation(name)
        return self.runtime.conversation(name, read_only=True)

    def _enter(self, name: str) -> OpenChat:
        if self._archive is not None:
            return OpenChat(self, name, self._archive.conversation(name), refusal=self.why_closed)
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
