"""A dialogue with the model: its turns, its branches, and one answer at a time.

Knows turns, the chat template's face and how to ask for a generation. Does not know how tokens are
computed or where KV lies; it hands the engine whole contexts and the engine finds what it can reuse.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from array import array
from typing import TYPE_CHECKING, Unpack

from edgekv.config import ANSWER_FIELDS
from edgekv.conversation.asking import ask, room_for, sampling_of
from edgekv.conversation.dialogue import Dialogue, known_part
from edgekv.conversation.markdown import markdown_lines
from edgekv.conversation.render import exchange_turns, render_turn, trim_to_text
from edgekv.conversation.stream import CancelToken, Generation, Stream
from edgekv.conversation.turns import Branch, Turn, TurnTree, answered
from edgekv.engine.request import Request, Sampling
from edgekv.errors import Busy, ConfigError, ConversationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgekv.config import AnswerOptions, Config
    from edgekv.conversation.asking import Executor
    from edgekv.conversation.journal import Identity, Journal
    from edgekv.conversation.render import FrontLike
    from edgekv.engine.request import Expect
    from edgekv.events import Result


class Conversation:
    """One dialogue; get it from `Runtime.conversation`. Safe to use from any thread.

    It makes one answer at a time: asking while another is being made raises Busy. Turns are counted from 0
    along the current branch.
    """

    def __init__(
        self, identity: Identity, *, front: FrontLike | None, config: Config, journal: Journal, executor: Executor,
        private: bool, refusal: str | None = None,
    ) -> None:  # fmt: skip
        """`refusal`, if given, is why this conversation can be read but not continued; only then there may be no
        `front`.
        """
        assert front is not None or refusal is not None, "without a model it can only be read"
        self.name = identity.name
        self.private = private
        self.sequence_id = identity.sequence_id
        self._identity = identity
        self._model_front = front
        self._config = config
        self._journal = journal
        self._executor = executor
        self._refusal = refusal
        self._is_read_only = refusal is not None
        self._lock = threading.RLock()
        self._tree = TurnTree()
        self._active: Generation | None = None
        journal.load(self._tree)

    @property
    def system(self) -> str | None:
        """The system prompt, or None for the template's own."""
        return self._identity.meta.system

    def send(
        self,
        text: str,
        *,
        cancel: CancelToken | None = None,
        submitted_at: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Result:
        """Say `text` and wait for the whole answer.

        `Result.exactness` says how it came to be. Under `attention="exact"` every token read the whole
        conversation. Under `auto` (the default) and `selected`, tokens that read a budget only make the answer
        `selected`, and so is every later one that builds on their KV, until exact attention computes it again;
        `Result.attention` says how much was read and how much of full attention that kept.

        Raises Cancelled (with the partial result, which is kept) when `cancel` or `timeout` ended it, and
        ContextOverflow, before anything is kept, when the message does not fit the model's window.
        """
        return self.stream(text, cancel=cancel, submitted_at=submitted_at, **options).result()

    def stream(
        self,
        text: str,
        *,
        cancel: CancelToken | None = None,
        submitted_at: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Stream:
        """Say `text`; the message is kept when this returns, and the answer comes as events.

        `submitted_at` (time.perf_counter()) is where the time to first token runs from: now, by default.
        """
        return self._begin(text, None, cancel, submitted_at, options)

    def edit(
        self, turn: int, text: str, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> Result:
        """Ask differently at `turn`: a new branch that shares everything before it; the old one stays."""
        return self.stream_edit(turn, text, cancel=cancel, **options).result()

    def stream_edit(
        self, turn: int, text: str, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> Stream:
        """Like `edit`, as events."""
        return self._begin(text, turn, cancel, None, options)

    def regenerate(self, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]) -> Result:
        """Answer the last message again, on a new branch; also answers one that was interrupted."""
        return self.stream_regenerate(cancel=cancel, **options).result()

    def stream_regenerate(
        self, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> Stream:
        """Like `regenerate`, as events."""
        return self._begin(None, -1, cancel, None, options)

    def stream_reply(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        cancel: CancelToken | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Stream:
        """Answer a dialogue that the caller keeps and gives whole, as (role, content) pairs; a user's is the last.

        Goes on from the longest branch with the same words, whose KV is there already; exchanges that were not
        made here are added to it as they are given. Raises ConversationError for messages that are no dialogue, or
        that have another system message than this conversation.
        """
        return self._begin(Dialogue.of(messages), None, cancel, None, options)

    def add_exchanges(self, said: Iterable[tuple[str, str]]) -> None:
        """Go on from (message, answer) pairs that were made elsewhere; they are kept, and read when needed.

        Raises StoreError where the disk refuses them: nothing is added then. ConversationError, Busy as `stream`.
        """
        self._wait_idle()
        with self._lock:
            self._check_continuable()
            self._check_idle()
            new = self._put_exchanges(self._tree.head, list(said))
            if new:
                try:
                    self._journal.save(self._tree.path(new[-1].id))
                except BaseException:
                    self._tree.take_back(new)
                    raise
                self._tree.head = new[-1].id
                self._journal.settle_all()  # what is owed still was told, and the next answer says it again

    def cancel(self) -> None:
        """Stop the answer being made, if any; what is there of it is kept."""
        active = self._active
        if active is not None:
            active.cancel()

    def hint(self, *, expect: Expect, ttl: float | None = None) -> None:
        """Say who speaks next here: a "tool" (within 2 s), the "user" (within 60 s), or nobody: "done".

        `ttl`: within so many seconds instead. It orders whose KV leaves the faster memory first when room is
        needed: what is done, then the least recently used, last what a tool goes on with. Nothing is freed for it
        (Continuum, arXiv 2511.02230). The next message here ends it. ConfigError for what makes no sense.
        """
        if expect not in ("tool", "user", "done"):
            raise ConfigError(f"expect is {expect!r}; it has to be tool, user or done")
        if ttl is not None and not ttl > 0:
            raise ConfigError(f"ttl is {ttl}; it has to be a number of seconds above 0")
        self._executor.check_usable()
        self._executor.hint(self.sequence_id, expect, ttl)

    def history(self) -> list[Turn]:
        """The turns of the current branch, oldest first."""
        with self._lock:
            return self._tree.path(self._tree.head)

    def turns(self) -> list[Turn]:
        """The turns of all branches, each behind its parent."""
        with self._lock:
            return self._tree.turns()

    def markdown(self) -> str:
        """The current branch for reading; whoever writes it to a file writes it unencrypted."""
        return "\n".join(markdown_lines(self.name, self.history())) + "\n"

    def branches(self) -> list[Branch]:
        """Every branch, oldest first."""
        with self._lock:
            return self._tree.branches()

    def switch(self, branch: Branch | int) -> None:
        """Go on from the end of `branch` (or from the turn with that id).

        A conversation opened to be read goes there too, and nothing of it is kept.
        """
        self._wait_idle()
        with self._lock:
            turn = self._tree.get(branch.id if isinstance(branch, Branch) else branch)
            if not self._is_read_only:
                self._check_continuable()
                self._journal.save_head(turn.id)
            self._tree.head = turn.id

    def where(self) -> str:
        """Where its KV lies now, a letter for each 16 tokens: D device, H host, S disk only, - computed again when
        needed. Empty unless it was used in this run. Does not wait for the engine.
        """
        return self._executor.where(self.sequence_id)

    def num_tokens(self) -> int:
        """Tokens of the current branch, answers included."""
        with self._lock:
            return len(self._tree.context_ids(self._tree.head))

    def retire(self, reason: str) -> None:
        """Stop what runs, wait for it, and refuse everything later with `reason`."""
        with self._lock:  # whoever is past the check in `_begin` has submitted before this gets the lock
            self._refusal = reason
            active = self._active
        if active is not None:
            active.cancel()
            active.wait()

    @property
    def _front(self) -> FrontLike:
        assert self._model_front is not None, "what needs a model was refused before"
        return self._model_front

    def _begin(
        self,
        text: str | Dialogue | None,
        turn: int | None,
        cancel: CancelToken | None,
        submitted_at: float | None,
        options: Mapping[str, object],
    ) -> Stream:
        """Render, keep the message, enqueue. `turn` is the one to branch at; `text=None` repeats its own; a whole
        dialogue finds where it branches.
        """
        submitted_at = time.perf_counter() if submitted_at is None else submitted_at
        self._wait_idle()
        with self._lock:
            self._check_continuable()
            self._check_idle()  # another thread may have begun between the wait and the lock
            config = self._config.replace(options, only=ANSWER_FIELDS)
            replaced = None if turn is None else self._tree.at(turn)
            parent = self._tree.head if replaced is None else replaced.parent
            if text is None:
                assert replaced is not None, "only an existing turn can be repeated"
                text = replaced.user
            if isinstance(text, Dialogue):
                parent, text = self._go_along(text), text.question
            new, request = self._prepare(text, parent, config, submitted_at)
            generation = ask(
                request,
                config,
                self._executor,
                token=cancel,
                commit=lambda result: self._commit(new, result),
                prepare=lambda: self._keep(new),
            )
            self._active = generation
            stream = Stream(generation)
        generation.queued()
        return stream

    def _go_along(self, dialogue: Dialogue) -> int | None:
        """The turn behind which the dialogue's question goes; exchanges not made here are added."""
        if dialogue.system is not None and dialogue.system != self.system:
            raise ConversationError(
                f"conversation {self.name!r} began with another system message; leave it out or take a new name"
            )
        parent, num_known = known_part(self._tree, dialogue.said)
        new = self._put_exchanges(parent, dialogue.said[num_known:])  # kept with the question
        return new[-1].id if new else parent

    def _put_exchanges(self, parent: int | None, said: Sequence[tuple[str, str]]) -> list[Turn]:
        """Exchanges made elsewhere into the tree, behind `parent`."""
        path = self._tree.path(parent)
        new = exchange_turns(self._front, path, self.system, said, self._tree.next_id())
        for turn in new:
            self._tree.put(turn)
        return new

    def _prepare(
        self, text: str, parent: int | None, config: Config, submitted_at: float
    ) -> tuple[Turn, Request]:
        """The unanswered turn and what to ask of the engine; ContextOverflow if it cannot fit."""
        sampling = sampling_of(config)
        prompt_ids, is_whole = render_turn(self._front, self._tree.path(parent), self.system, text)
        context = prompt_ids[:] if is_whole else self._tree.context_ids(parent) + prompt_ids
        room = room_for(len(context), config, self._front.context_length)
        turn = Turn(
            id=self._tree.next_id(),
            parent=parent,
            user=text,
            is_whole=is_whole,
            prompt_ids=prompt_ids,
            sampling={name: getattr(sampling, name) for name in Sampling.__slots__},
        )
        request = Request(
            sequence_id=self.sequence_id,
            token_ids=context,
            durable=not self.private,
            sampling=sampling,
            max_tokens=min(config.max_tokens, room),
            stop=config.stop + self._front.template.stop,
            stop_ids=self._front.tokenizer.end_ids,
            submitted_at=submitted_at,
        )
        return turn, request

    def _keep(self, turn: Turn) -> list[str]:
        """Add the turn to the tree and the journal; a refusing disk is told, the chat goes on."""
        self._tree.put(turn)
        self._tree.head = turn.id
        return self._save(turn.id)

    def _commit(self, turn: Turn, result: Result) -> Result:
        """Put the answer into the tree and the journal (engine thread); returns what the caller is told."""
        tokenizer = self._front.tokenizer
        ids = array("i", result.token_ids)
        if not ids and result.text:  # the engine failed and took the ids with it; the text was seen
            ids = array("i", tokenizer.encode_pieces([(result.text, False)]))
        ended = bool(ids) and ids[-1] in tokenizer.end_ids
        if result.finish_reason == "stop" and not ended:  # by a stop string
            ids = trim_to_text(tokenizer, ids, result.text)
        with self._lock:
            self._tree.put(
                answered(
                    turn,
                    text=result.text,
                    token_ids=ids,
                    finish_reason=result.finish_reason,
                    exactness=result.exactness,
                    ended=ended,
                )
            )
            told = self._save(turn.id)
        return dataclasses.replace(result, notices=(*result.notices, *told))

    def _save(self, turn_id: int) -> list[str]:
        """Journal one turn, then what the disk refused before; returns what to tell the user if it refuses."""
        path = self._tree.path(turn_id)
        try:
            self._journal.save(path)
        except StoreError as error:
            self._journal.owe(path)
            return [f"this turn is in memory only: {error}"]
        why = self._journal.settle_all()
        return [] if why is None else [f"earlier turns are in memory only: {why}"]

    def _check_continuable(self) -> None:
        self._executor.check_usable()
        if self._refusal is not None:
            raise ConversationError(self._refusal)

    def _wait_idle(self) -> None:
        """Return once no answer is being made; Busy if one is and nobody asked it to stop."""
        self._executor.check_usable()
        active = self._active
        if active is not None and active.is_cancelled():
            active.wait()
        self._check_idle()

    def _check_idle(self) -> None:
        if self._active is not None and not self._active.finished:
            raise Busy(f"conversation {self.name!r} is already generating; wait, or cancel() it first")
