"""The same Runtime for asyncio programs.

Knows how to wait without blocking the event loop; everything else is the Runtime's. Cancelling the task
that reads a stream stops the computation, not just the waiting, and returns once it has stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Self, Unpack

from edgekv.conversation.linefile import read_lines, write_lines
from edgekv.errors import Cancelled, ConversationError
from edgekv.events import Done
from edgekv.runtime import Runtime

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from edgekv.config import AnswerOptions, Config, Options
    from edgekv.conversation import Branch, CancelToken, Conversation, ConversationInfo, Stream, Turn
    from edgekv.conversation.foreign import ForeignChat
    from edgekv.conversation.opening import EngineFactory
    from edgekv.engine.request import Expect
    from edgekv.events import Embeddings, Event, Result
    from edgekv.stats import Move, Snapshot


class AsyncRuntime:
    """`async with AsyncRuntime(model=...) as rt`; the arguments are those of `Runtime`."""

    def __init__(
        self,
        *,
        config: Config | None = None,
        config_path: Path | None = None,
        engine_factory: EngineFactory | None = None,
        durable: bool = True,
        passphrase: Callable[[str], str] | str | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Only remembers the arguments; the model is loaded by `async with`, off the event loop."""
        self._open: Callable[[], Runtime] = lambda: Runtime(
            config=config,
            config_path=config_path,
            engine_factory=engine_factory,
            durable=durable,
            passphrase=passphrase,
            **options,
        )
        self._runtime: Runtime | None = None

    @classmethod
    def over(cls, runtime: Runtime) -> Self:
        """The asyncio face of a Runtime that is open already; `close()` closes it."""
        self = cls(config=runtime.config)
        self._runtime = runtime
        return self

    async def __aenter__(self) -> Self:
        if self._runtime is None:
            self._runtime = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def runtime(self) -> Runtime:
        """The Runtime behind it. ConversationError before `async with` opened it."""
        if self._runtime is None:
            raise ConversationError("open it first: `async with AsyncRuntime(...) as rt`")
        return self._runtime

    async def conversation(
        self,
        name: str | None = None,
        *,
        private: bool = False,
        system: str | None = None,
        read_only: bool = False,
        keep: bool = True,
    ) -> AsyncConversation:
        """See `Runtime.conversation`."""
        conversation = await asyncio.to_thread(
            self.runtime.conversation, name, private=private, system=system, read_only=read_only, keep=keep
        )
        return AsyncConversation(conversation)

    async def conversations(self) -> list[ConversationInfo]:
        """See `Runtime.conversations`."""
        return await asyncio.to_thread(self.runtime.conversations)

    async def names(self) -> list[str]:
        """See `Runtime.names`."""
        return await asyncio.to_thread(self.runtime.names)

    async def forget(self, name: str, *, private: bool = False) -> None:
        """See `Runtime.forget`."""
        await asyncio.to_thread(self.runtime.forget, name, private=private)

    async def rename(self, name: str, new_name: str, *, private: bool = False) -> None:
        """See `Runtime.rename`."""
        await asyncio.to_thread(self.runtime.rename, name, new_name, private=private)

    async def import_foreign(self, chat: ForeignChat, name: str | None = None) -> str:
        """See `Runtime.import_foreign`."""
        return await asyncio.to_thread(self.runtime.import_foreign, chat, name)

    async def export_conversation(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write a kept conversation as JSON lines into a new file, 0600. They are not encrypted."""
        lines = await asyncio.to_thread(self.runtime.export_conversation, name)
        await write_lines(path, lines)

    async def import_conversation(self, path: str | os.PathLike[str], name: str | None = None) -> str:
        """Keep what was exported to `path`; returns the conversation's name."""
        lines = await read_lines(path)
        return await asyncio.to_thread(self.runtime.import_conversation, lines, name)

    def stream_text(
        self, text: str, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> AsyncStream:
        """See `Runtime.stream_text`."""
        return AsyncStream(lambda: self.runtime.stream_text(text, cancel=cancel, **options))

    async def embed(self, texts: Sequence[str | Sequence[int]]) -> Embeddings:
        """See `Runtime.embed`."""
        return await asyncio.to_thread(self.runtime.embed, texts)

    def stats(self) -> Snapshot:
        """See `Runtime.stats`; it never waits."""
        return self.runtime.stats()

    def moves(self) -> list[Move]:
        """See `Runtime.moves`; it never waits."""
        return self.runtime.moves()

    async def unload(self) -> None:
        """See `Runtime.unload`."""
        await asyncio.to_thread(self.runtime.unload)

    async def load(self) -> None:
        """See `Runtime.load`."""
        await asyncio.to_thread(self.runtime.load)

    async def close(self) -> None:
        """Stop what runs, keep it, free the memory."""
        if self._runtime is not None:
            await asyncio.to_thread(self._runtime.close)


class AsyncConversation:
    """A `Conversation` whose answers are awaited."""

    def __init__(self, conversation: Conversation) -> None:
        self.sync = conversation

    @property
    def name(self) -> str:
        """The conversation's name."""
        return self.sync.name

    async def send(
        self, text: str, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> Result:
        """See `Conversation.send`."""
        return await self.stream(text, cancel=cancel, **options).result()

    def stream(
        self, text: str, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> AsyncStream:
        """See `Conversation.stream`; the message is sent when the stream is first waited for."""
        now = time.perf_counter()
        return AsyncStream(lambda: self.sync.stream(text, cancel=cancel, submitted_at=now, **options))

    def stream_reply(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        cancel: CancelToken | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AsyncStream:
        """See `Conversation.stream_reply`."""
        return AsyncStream(lambda: self.sync.stream_reply(messages, cancel=cancel, **options))

    def edit(
        self, turn: int, text: str, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> AsyncStream:
        """See `Conversation.stream_edit`; `await .result()` for the whole answer."""
        return AsyncStream(lambda: self.sync.stream_edit(turn, text, cancel=cancel, **options))

    def regenerate(
        self, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> AsyncStream:
        """See `Conversation.stream_regenerate`; `await .result()` for the whole answer."""
        return AsyncStream(lambda: self.sync.stream_regenerate(cancel=cancel, **options))

    @property
    def system(self) -> str | None:
        """See `Conversation.system`."""
        return self.sync.system

    async def add_exchanges(self, said: Iterable[tuple[str, str]]) -> None:
        """See `Conversation.add_exchanges`."""
        await asyncio.to_thread(self.sync.add_exchanges, said)

    def turns(self) -> list[Turn]:
        """See `Conversation.turns`."""
        return self.sync.turns()

    def markdown(self) -> str:
        """See `Conversation.markdown`."""
        return self.sync.markdown()

    def num_tokens(self) -> int:
        """See `Conversation.num_tokens`."""
        return self.sync.num_tokens()

    def where(self) -> str:
        """See `Conversation.where`."""
        return self.sync.where()

    def hint(self, *, expect: Expect, ttl: float | None = None) -> None:
        """See `Conversation.hint`; it never waits."""
        self.sync.hint(expect=expect, ttl=ttl)

    def history(self) -> list[Turn]:
        """See `Conversation.history`."""
        return self.sync.history()

    def branches(self) -> list[Branch]:
        """See `Conversation.branches`."""
        return self.sync.branches()

    async def switch(self, branch: Branch | int) -> None:
        """See `Conversation.switch`."""
        await asyncio.to_thread(self.sync.switch, branch)

    def cancel(self) -> None:
        """See `Conversation.cancel`."""
        self.sync.cancel()


class AsyncStream:
    """The events of one answer for `async for`; stops the computation when it is left early."""

    def __init__(self, begin: Callable[[], Stream]) -> None:
        self._begin = begin
        self._stream: Stream | None = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._stream is None:
                await self._start()
            event = await self._next()
        except BaseException:
            await self.aclose()
            raise
        self._ended = isinstance(event, Done)
        return event

    async def result(self) -> Result:
        """Read to the end. Raises Cancelled, carrying the partial result, if it was stopped."""
        async for event in self:
            if isinstance(event, Done):
                if event.result.finish_reason == "cancelled":
                    raise Cancelled(event.result)
                return event.result
        raise ConversationError("this stream was already read to its end or closed")

    async def aclose(self) -> None:
        """Stop it and wait until what was generated is kept."""
        self._ended = True
        if self._stream is not None:
            self._stream.cancel()
            # Shielded: the task may already be cancelled, and the computation must have ended after this.
            await asyncio.shield(asyncio.to_thread(self._stream.close))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # `break` left it: now, not when the thread that began it lets go of its own reference.
        if self._stream is not None and not self._ended:
            self._stream.cancel()

    async def _start(self) -> None:
        self._changed = asyncio.Event()
        starting = asyncio.ensure_future(asyncio.to_thread(self._begin))
        try:
            self._stream = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on and may yet submit: take its stream over, so that aclose() can stop it.
            with contextlib.suppress(Exception):
                self._stream = await starting
            raise
        loop = asyncio.get_running_loop()
        changed = self._changed

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(changed.set)

        self._stream.notify(tell)

    async def _next(self) -> Event:
        assert self._stream is not None, "started before it is read"
        while True:
            self._changed.clear()
            event = self._stream.poll()
            if event is not None:
                return event
            remaining = self._stream.remaining_s()
            try:
                await asyncio.wait_for(self._changed.wait(), remaining)
            except TimeoutError:
                self._stream.cancel()  # its time is over, perhaps while it waited in the queue
