"""Runtime: one model, one engine thread, one data directory, and the conversations over them.

The one factory for the command line, front ends and tests. Knows what to open, in which order, and what to
do without when the disk is not to be had. Does not know how tokens are computed. It prints nothing,
installs no signal handler and keeps no global.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from edgekv.config import Config, load_config
from edgekv.conversation.conversation import Conversation
from edgekv.conversation.embedding import embed
from edgekv.conversation.exchange import export_lines, import_lines
from edgekv.conversation.journal import Identity, Meta, PrivateJournal, UnkeptJournal, translated
from edgekv.conversation.library import SEQUENCE_ID_BYTES, Library, check_name, free_name
from edgekv.conversation.opening import build_or_degrade, close_all, close_files, open_files, rebuild_of
from edgekv.conversation.rawtext import RawText
from edgekv.conversation.unlock import Unlock
from edgekv.conversation.worker import EngineThread
from edgekv.errors import ConversationError, StoreError
from edgekv.stats import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from edgekv.config import AnswerOptions, Options
    from edgekv.conversation import CancelToken, Stream
    from edgekv.conversation.foreign import ForeignChat
    from edgekv.conversation.journal import Journal
    from edgekv.conversation.library import ConversationInfo
    from edgekv.conversation.opening import EngineFactory
    from edgekv.events import Embeddings
    from edgekv.stats import Move


NOT_DURABLE = "this session keeps nothing on disk"


class Runtime:
    """A loaded model and its conversations. Any thread may call; use it as a context manager or `close()`.

    Options are those of `Config`; what is not given comes from `EDGEKV_*`, the TOML file and the defaults,
    in this order. Give `config` instead to take exactly that one. Raises ConfigError, ModelLoadError,
    CapacityError, or StoreError for a data directory of an unknown format. A data directory that another
    process uses, or that cannot be written, leaves the memory tiers only: `degraded` then says why. With
    `durable=False` the data directory is not even opened: nothing is kept, conversations are private.
    `passphrase` (or EDGEKV_PASSPHRASE): the text, or a function that is given a question and returns it; needed
    where the data directory is protected by one. Keys that cannot be had are a StoreError, never a new start.
    """

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
        given = load_config(options, config_path=config_path) if config is None else config.replace(options)
        self.config = given
        model = _model_path(self.config) if engine_factory is None else Path(self.config.model or "")
        self._lock = threading.RLock()
        self._unnamed = itertools.count(1)
        self._conversations: dict[tuple[str, bool], Conversation] = {}
        self._copies: weakref.WeakSet[Conversation] = weakref.WeakSet()  # of kept ones, in memory only
        self._forgetting: set[tuple[str, bool]] = set()
        self._raw: RawText | None = None
        unlock = Unlock.of(self.config, passphrase)
        opened = open_files(self.config.data_dir, unlock) if durable else (None, None, None)
        self._data_dir, self._library, self.degraded = opened
        writable = None if self.degraded else self._data_dir
        keys = None if self._library is None else self._library.keys
        trouble: list[str] = []  # filled in the engine's thread, which must not hold this Runtime
        try:
            build = engine_factory or _load_engine_factory()
            with translated():
                self._worker = EngineThread(
                    lambda: build_or_degrade(build, given, model, writable, keys, trouble),
                    queue_size=given.queue_size,
                    keep_alive_s=given.keep_alive,
                )
        except BaseException:
            close_files(self._library, self._data_dir)
            raise
        self.degraded = self.degraded or next(iter(trouble), None)
        if self.degraded is not None:
            self._worker.add_notice(f"nothing is kept on disk: {self.degraded}")
        for notice in self._library.notices if self._library is not None else ():
            self._worker.add_notice(notice)
        self._closer = weakref.finalize(self, close_all, self._worker, self._library, self._data_dir)

    def conversation(
        self,
        name: str | None = None,
        *,
        private: bool = False,
        system: str | None = None,
        read_only: bool = False,
        keep: bool = True,
    ) -> Conversation:
        """The conversation called `name`, new or continued; the same object for the same name.

        A private one needs no name, is kept in memory only and ends with the Runtime. `system` is the system
        prompt of a new conversation. `read_only` opens a kept conversation for its history alone: when
        another process uses the data directory or another model made it. `keep=False` goes on in memory only from
        what is kept, for where `degraded` is set: a private copy, to be renamed and forgotten as one. Raises
        ConversationError if the conversation belongs to another model, and StoreError if the data directory is in
        use elsewhere.
        """
        self._worker.check_usable()
        with self._lock:
            if read_only:
                refusal = f"conversation {name!r} was opened to be read only"
                return self._open_kept(name or "", refusal=refusal)
            if name is None and not private:
                raise ConversationError("a conversation needs a name to be kept; or ask for private=True")
            is_copy = not private and not keep
            key = (f"private {next(self._unnamed)}" if name is None else name, private or is_copy)
            self._check_not_forgetting(key)
            if key not in self._conversations:
                self._conversations[key] = self._open(key[0], private, system=system, keep=keep)
                if is_copy:
                    self._copies.add(self._conversations[key])
            conversation = self._conversations[key]
            if (conversation in self._copies) != is_copy:
                raise ConversationError(f"a private {name!r} is open already: rename it or forget it first")
        if system is not None and system != conversation.system:
            raise ConversationError(
                f"conversation {conversation.name!r} began with another system prompt; "
                "leave it out or take a new name"
            )
        return conversation

    def conversations(self) -> list[ConversationInfo]:
        """The kept conversations, last used first."""
        self._worker.check_usable()
        return [] if self._library is None else self._library.infos()

    def names(self) -> list[str]:
        """The names of the kept conversations; unlike `conversations` it reads none of their turns."""
        self._worker.check_usable()
        return [] if self._library is None else self._library.names()

    def rename(self, name: str, new_name: str, *, private: bool = False) -> None:
        """Give a conversation another name. ConversationError where that name is taken or unusable."""
        self._worker.check_usable()
        old, new = (name, private), (new_name, private)
        with self._lock:
            self._check_not_forgetting(old)
            conversation = self._conversations.get(old)
            if private:
                check_name(new_name)
                if conversation is None:
                    raise ConversationError(f"no private conversation is called {name!r}")
                if new != old and new in self._conversations:
                    raise ConversationError(f"there is a private conversation called {new_name!r} already")
            else:
                self._writable_library().rename(name, new_name)
            if conversation is not None:
                conversation.name = new_name
                self._conversations[new] = self._conversations.pop(old)

    def forget(self, name: str, *, private: bool = False) -> None:
        """Destroy a conversation, transcript and KV, in every tier. ConversationError if there is none."""
        self._worker.check_usable()
        key = (name, private)
        with self._lock:
            self._check_not_forgetting(key)
            conversation = self._conversations.get(key)
            if conversation is None and private:
                raise ConversationError(f"no private conversation is called {name!r}")
            if not private:
                self._writable_library().require(name)
            self._forgetting.add(key)
        try:  # without the lock: what runs and what is queued before it may take long
            if conversation is not None:
                conversation.retire(f"conversation {name!r} was forgotten")
            if private:
                assert conversation is not None, "checked above"
                sequence_id = conversation.sequence_id
            else:
                sequence_id = self._writable_library().begin_forgetting(name)
            # KV before text: whoever dies in between finds the name still listed and can repeat it; with keys
            # the next start ends what was begun.
            with translated():
                self._worker.call(lambda engine: engine.release(sequence_id, forget=True))
            if not private:
                self._writable_library().end_forgetting(sequence_id)
        finally:
            with self._lock:
                self._conversations.pop(key, None)
                self._forgetting.discard(key)

    def export_conversation(self, name: str) -> list[str]:
        """A kept conversation as JSON lines (not encrypted). ConversationError if there is none."""
        self._worker.check_usable()
        if self._library is None:
            raise StoreError(f"no conversation can be read: {self.degraded or NOT_DURABLE}")
        return list(export_lines(self._library, name))

    def import_conversation(self, lines: Iterable[str], name: str | None = None) -> str:
        """Keep what `export_conversation` gave, under its own or another name, which is returned."""
        self._worker.check_usable()
        return import_lines(self._writable_library(), lines, name)

    def import_foreign(self, chat: ForeignChat, name: str | None = None) -> str:
        """Keep a conversation of another program (`read_foreign`) as `name`, or its title; all of it or nothing.

        Its words become this model's tokens. Returns the name; "2" and so on is added where one is taken.
        ConversationError where it has a `refusal`.
        """
        if chat.refusal is not None:
            raise ConversationError(f"{chat.title[:100]!r} is not imported: {chat.refusal}")
        with self._lock:  # until it has the name, or somebody else could take it
            others = {name for name, private in (*self._conversations, *self._forgetting) if not private}
            free = free_name(name or chat.title, {*self.names(), *others})
            conversation = self.conversation(free, system=chat.system)
        try:
            conversation.add_exchanges(chat.said)
        except BaseException:
            self.forget(conversation.name)
            raise
        return conversation.name

    def stream_text(
        self, text: str, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> Stream:
        """Continue `text` as it stands, without the chat template; nothing of it is kept on disk."""
        self._worker.check_usable()
        with self._lock:
            if self._raw is None:
                self._raw = RawText(front=self._worker.front, config=self.config, executor=self._worker)
            raw = self._raw
        return raw.stream(text, cancel=cancel, **options)

    def embed(self, texts: Sequence[str | Sequence[int]]) -> Embeddings:
        """Static vectors of texts (or of their token ids), made of the model's token vectors alone: quick, no KV.

        They tell texts with the same words from others; they know no order of words. Vectors of different models
        do not go together. Raises ConfigError for a text without tokens.
        """
        self._worker.check_usable()
        with translated():
            return embed(self._worker, texts)

    def stats(self) -> Snapshot:
        """What may be shown of this Runtime now (any thread, does not wait for the engine)."""
        self._worker.check_usable()
        return Snapshot(
            model=self._worker.front.name,
            context_length=self._worker.front.context_length,
            cache=self._worker.engine.cache_use(),
            device_budget=self.config.device_budget,
            host_budget=self.config.host_budget,
            disk_budget=self.config.disk_budget,
            num_waiting=self._worker.num_waiting(),
            is_generating=self._worker.is_generating,
            num_open_conversations=len(self._conversations),
            degraded=self.degraded,
            is_loaded=self._worker.engine.is_loaded,
        )

    def moves(self) -> list[Move]:
        """What was demoted, dropped or evicted lately and why, oldest first (any thread, does not wait)."""
        self._worker.check_usable()
        with self._lock:
            names = {c.sequence_id: c.name for c in self._conversations.values()}
        return [dataclasses.replace(move, name=names.get(id_)) for id_, move in self._worker.engine.moves()]

    def unload(self) -> None:
        """Free the weights and all KV in memory, after what is queued; durable KV is on disk before that.

        Conversations stay as they are: the next message loads the model again and restores what is on disk. What
        is private is computed again. `keep_alive` does this by itself after some time without work.
        """
        with translated():
            self._worker.call(lambda engine: engine.unload())

    def load(self) -> None:
        """Load the model again now, where `unload` or `keep_alive` freed it. Raises as opening the Runtime does."""
        with translated():
            self._worker.call(lambda engine: engine.load())

    def close(self) -> None:
        """Stop what runs (its partial answer is kept), flush, free all memory. Again: nothing.

        What the disk refused is tried once more. Raises StoreError, when all is closed, for turns that it refuses
        still, or KV that could not be written.
        """
        try:
            with translated():
                self._closer()
        finally:
            self._raw = None
            self._conversations.clear()  # they know the tokenizer and the template

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_not_forgetting(self, key: tuple[str, bool]) -> None:
        if key in self._forgetting:
            raise ConversationError(f"conversation {key[0]!r} is being forgotten; try again when it is gone")

    def _open(self, name: str, private: bool, *, system: str | None, keep: bool = True) -> Conversation:
        check_name(name)
        system = self.config.system if system is None else system
        front = self._worker.front
        meta = Meta(fingerprint=front.fingerprint, model=front.name, system=system)
        library = None if private else self._writable_library() if keep else self._library
        found = None if library is None else library.find(name)
        if found is None and (private or not keep):
            return self._assemble(Identity(name, os.urandom(SEQUENCE_ID_BYTES), meta), private=True)
        assert library is not None, "only what needs none goes without transcripts"
        if found is None:
            if library.num_damaged():
                self._worker.add_notice(
                    f"{name!r} begins anew; if it was there before, its record is damaged: `edgekv conversations` "
                    "lists what cannot be read"
                )
            return self._assemble(library.create(name, meta), private=False)
        if found.meta.fingerprint != front.fingerprint:
            raise ConversationError(
                f"conversation {name!r} belongs to the model {found.meta.model} "
                f"({found.meta.fingerprint.hex()[:8]}), this is {front.name} ({front.fingerprint.hex()[:8]}): "
                "start with that model (--model), or take a new name; its text stays readable"
            )
        if not keep:
            copy = Identity(name, os.urandom(SEQUENCE_ID_BYTES), found.meta)
            return self._assemble(copy, private=True, journal=UnkeptJournal(library.journal(name)))
        return self._assemble(found, private=False)

    def _open_kept(self, name: str, *, refusal: str) -> Conversation:
        """A conversation for reading; not shared, and whatever model made it."""
        if self._library is None:
            raise StoreError(f"no conversation can be read: {self.degraded or NOT_DURABLE}")
        self._library.require(name)
        found = self._library.find(name)
        assert found is not None, "it was required a line above"
        return self._assemble(found, private=False, refusal=refusal)

    def _assemble(
        self, identity: Identity, *, private: bool, refusal: str | None = None, journal: Journal | None = None
    ) -> Conversation:
        library = self._library
        assert private or library is not None, "only private conversations do without transcripts"
        journal = journal or PrivateJournal()
        if library is not None and not private:
            rebuild = rebuild_of(self._worker, identity)
            journal = library.journal(identity.name, read_only=refusal is not None, rebuild=rebuild)
        return Conversation(
            identity,
            front=self._worker.front,
            config=self.config,
            journal=journal,
            executor=self._worker,
            private=private,
            refusal=refusal,
        )

    def _writable_library(self) -> Library:
        if self._library is None and self.degraded is None:
            raise StoreError(f"{NOT_DURABLE}; its conversations can only be private (private=True)")
        if self._library is None or self.degraded is not None:
            raise StoreError(
                f"{self.degraded}; as it is, a kept conversation can be read only (read_only=True), "
                "and a private one works (private=True, --private)"
            )
        return self._library


def _model_path(config: Config) -> Path:
    from edgekv.models.catalog import resolve_model  # noqa: PLC0415  only where no engine is given

    return resolve_model(config.model, config.data_dir)


def _load_engine_factory() -> EngineFactory:
    from edgekv.engine.build import build_engine  # noqa: PLC0415  torch comes with it

    return build_engine
