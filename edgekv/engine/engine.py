"""Generation: find what is cached, compute the rest, draw tokens, keep the leaves.

One engine serves all conversations of a Runtime, one request at a time, in one thread. Knows ids and events;
not templates, transcripts or names.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgekv.cache.directory import Directory
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.cache.ledger import Ledger, Tier
from edgekv.cache.sequence import Sequence, common_prefix
from edgekv.engine.machine import return_memory
from edgekv.engine.request import MAX_CONTEXT_TOKENS, Request
from edgekv.engine.sampler import Sampler
from edgekv.engine.stopper import Stopper
from edgekv.engine.turn import Turn
from edgekv.errors import CapacityError, ContextOverflow
from edgekv.events import CacheUse, PrefillProgress, Result, Timings, Usage
from edgekv.models.tokenizer import Detokenizer
from edgekv.tiers.arrivals import DamagedColumns
from edgekv.tiers.residency import EXTENT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from edgekv.engine.front import IdsFront, ModelFront
    from edgekv.engine.request import Emit, Expect, IsCancelled
    from edgekv.engine.runner import Runner
    from edgekv.events import FinishReason
    from edgekv.stats import Move
    from edgekv.tiers.residency import Residency


class Engine:
    """`EngineLike` on a real model and real tiers.

    Unloaded it has no runner, and pools without memory; the front and the store stay open.
    """

    def __init__(
        self,
        runner: Runner,
        residency: Residency,
        ledger: Ledger,
        front: ModelFront | IdsFront,
        rebuild: Callable[[], tuple[Runner, Residency, Ledger]] | None = None,
    ) -> None:
        """`rebuild` makes the first three anew over the same store; without it nothing can be unloaded."""
        self._loaded: Runner | None = runner
        self._residency = residency
        self._ledger = ledger
        self._front = front
        self._rebuild = rebuild
        self._num_requests = 0
        self._damaged_leaves = 0

    def generate(self, request: Request, emit: Emit, is_cancelled: IsCancelled) -> Result:
        """Run one request; see `EngineLike.generate`.

        Raises:
            ContextOverflow: the context leaves no room for an answer in the trained window.
            CapacityError: the tiers cannot hold the prompt.
        """
        started = time.perf_counter() if request.submitted_at is None else request.submitted_at
        self.load()
        context = list(request.token_ids)
        window = self.longest_context()
        if len(context) >= window:
            raise ContextOverflow(
                f"the conversation has {len(context)} tokens and the model was trained on {window}: begin a new "
                "conversation, edit an earlier turn, or let it select (--attention auto)"
            )
        turn = Turn(request, emit, is_cancelled, self._sequence(request), context, started)
        self._residency.activate(turn.sequence)
        disk = self._residency.mover.disk
        if disk is not None:
            disk.notify = turn.note
            disk.is_writable = disk.store.off_reason is None
            for notice in disk.store.take_notices():
                turn.note(notice)
        self._runner.take_use()  # of a turn that failed
        try:
            reason = self._run(turn, min(request.max_tokens, window - len(context)))
        finally:
            self._leave(turn)
        self._residency.flush(turn.sequence)
        return self._result(turn, reason)

    @property
    def _runner(self) -> Runner:
        assert self._loaded is not None, "loaded before anything is computed"
        return self._loaded

    @property
    def is_loaded(self) -> bool:
        """Whether weights and pools are in memory."""
        return self._loaded is not None

    def load(self) -> None:
        """Load the weights again where they were given up. Raises as building the engine does."""
        if self._loaded is None:
            assert self._rebuild is not None, "only what can be made anew is given up"
            self._loaded, residency, ledger = self._rebuild()
            residency.carry_on(self._residency)  # hints may come while it is not loaded
            ledger.carry_on(self._ledger)
            self._residency, self._ledger = residency, ledger

    def unload(self) -> None:
        """Write what is durable, then free the weights and every pool; the store stays open."""
        if self._loaded is not None and self._rebuild is not None:
            self._free_memory()

    def longest_context(self) -> int:
        """Tokens that a context and its answer may have together."""
        return self._front.context_length if self._runner.attention == "exact" else MAX_CONTEXT_TOKENS

    def _leave(self, turn: Turn) -> None:
        """Whatever ended the turn: nothing stays in flight, staged, half made or unverified."""
        damage = turn.arrivals.settle()
        self._residency.stream.close()
        whole = turn.sequence.num_tokens  # columns of a pass that failed lie beyond
        if damage is not None:
            whole = min(whole, damage.first * LEAF_TOKENS)
            self._damaged_leaves += damage.num_leaves
            turn.damaged_leaves += damage.num_leaves
        self._residency.shorten(turn.sequence, whole)
        self._residency.activate(None)

    def _run(self, turn: Turn, limit: int) -> FinishReason:
        self._reuse(turn, limit)
        before = time.perf_counter()
        logits = self._prefill(turn)
        turn.prefill_s = time.perf_counter() - before
        return "cancelled" if logits is None else self._decode(turn, logits, limit)

    def _sequence(self, request: Request) -> Sequence:
        """The warm sequence of the request, or an empty one."""
        self._num_requests += 1
        known = self._residency.sequences.get(request.sequence_id)
        if known is None:
            directory = Directory(self._residency.mover.device.shape.num_layers)
            known = Sequence(request.sequence_id, request.durable, directory)
            self._residency.sequences[known.id] = known
        known.last_used = self._num_requests
        return known

    def _reuse(self, turn: Turn, limit: int) -> None:
        """Keep what the sequence shares with the context, find more on disk, start bringing it up."""
        sequence, wanted = turn.sequence, turn.context[:-1]  # the last token's logits must be computed
        only_exact = self._runner.attention == "exact"
        if only_exact and not sequence.is_exact:
            self._residency.shorten(sequence, sequence.num_exact // LEAF_TOKENS * LEAF_TOKENS)
        shared = common_prefix(sequence.token_ids, wanted)
        if shared < sequence.num_tokens:
            self._residency.shorten(sequence, shared // LEAF_TOKENS * LEAF_TOKENS)
        disk = self._residency.mover.disk
        if disk is not None and sequence.durable:
            found = disk.find(sequence, wanted, only_exact=only_exact)
            if len(found.places) * LEAF_TOKENS > sequence.num_tokens:
                self._residency.shorten(sequence, sequence.num_full * LEAF_TOKENS)
                disk.adopt(sequence, wanted, found)
            missing = (len(wanted) - sequence.num_tokens) // LEAF_TOKENS * LEAF_TOKENS
            if missing > 0 and (why := disk.why_missing(sequence.id)) is not None:
                turn.note(f"{missing:,} tokens were not restored and are computed again: {why}")
        turn.num_reused = sequence.num_tokens
        turn.emit(PrefillProgress(turn.num_reused, len(turn.context), turn.num_reused))
        expected = len(turn.context) - sequence.num_tokens + limit
        try:
            last = self._runner.columns_to_restore(len(turn.context))
            self._residency.restore(sequence, expected, turn.arrivals, last=last)
        except DamagedColumns as damage:
            self._recover(turn, damage)

    def _prefill(self, turn: Turn) -> Tensor | None:
        """Compute the context that is not cached, block by block; logits of its last token, None if cancelled."""
        sequence, total = turn.sequence, len(turn.context)
        start, begun = sequence.num_tokens, time.perf_counter()
        hidden = None
        while sequence.num_tokens < total:
            if turn.is_cancelled():
                return None
            hidden = self._advance(turn)
            if sequence.num_tokens < total:
                computed = max(1, sequence.num_tokens - start)
                eta = (time.perf_counter() - begun) / computed * (total - sequence.num_tokens)
                turn.emit(PrefillProgress(sequence.num_tokens, total, turn.num_reused, eta))
        assert hidden is not None, "the last token is never reused"
        turn.emit(PrefillProgress(total, total, turn.num_reused, 0.0))
        return self._runner.logits(hidden[-1:])[0]

    def _advance(self, turn: Turn) -> Tensor | None:
        """One forward pass over the next block of the context; None when damage sent the sequence back."""
        sequence = turn.sequence
        start = sequence.num_tokens
        room = self._residency.block_columns * LEAF_TOKENS - start % LEAF_TOKENS
        block = turn.context[start : start + self._runner.block_size(start, len(turn.context), room)]
        turn.has_selected |= self._runner.selects(start + len(block), len(block))
        try:
            hidden = self._runner.forward(sequence, block, turn.arrivals)
        except DamagedColumns as damage:
            self._recover(turn, damage)
            return None
        self._residency.flush(sequence, at_least=EXTENT_COLUMNS)
        return hidden

    def _recover(self, turn: Turn, damage: DamagedColumns) -> None:
        """Leaves on disk were damaged: forget them and what depends on them; the next passes recompute it."""
        found = [damage, turn.arrivals.settle()]  # damage met while streaming may leave reads in flight
        num_leaves = sum(d.num_leaves for d in found if d is not None)
        first = min(d.first for d in found if d is not None) * LEAF_TOKENS
        turn.damaged_leaves += num_leaves
        self._damaged_leaves += num_leaves
        turn.num_reused = min(turn.num_reused, first)
        self._residency.shorten(turn.sequence, first)
        turn.note(f"{num_leaves} stored leaves were damaged; computing again from token {first}")

    def _decode(self, turn: Turn, logits: Tensor, limit: int) -> FinishReason:
        request = turn.request
        sampler = Sampler(request.sampling, turn.context)
        detokenizer, stopper = Detokenizer(self._front.tokenizer), Stopper(request.stop)
        reason: FinishReason = "length" if limit == request.max_tokens else "context"
        for count in range(1, limit + 1):
            token = sampler.sample(logits)
            sampler.accept(token)
            turn.context.append(token)
            turn.last_token_at = time.perf_counter()
            turn.first_token_at = turn.first_token_at or turn.last_token_at
            if token in request.stop_ids:
                reason = "stop"
                break
            turn.say(stopper.push(detokenizer.push(token)))
            if stopper.stopped:
                return "stop"
            if count == limit:
                break
            if turn.is_cancelled():
                reason = "cancelled"
                break
            try:
                following = self._next_logits(turn)
            except CapacityError as error:
                turn.note(str(error))
                reason = "context"
                break
            if following is None:
                reason = "cancelled"
                break
            logits = following
        turn.say(stopper.push(detokenizer.flush()))
        turn.say(stopper.flush())
        return reason

    def _next_logits(self, turn: Turn) -> Tensor | None:
        """Logits after the newest token; None if cancelled while damage made it compute many again."""
        hidden = None
        while turn.sequence.num_tokens < len(turn.context):
            if turn.sequence.num_tokens < len(turn.context) - 1 and turn.is_cancelled():
                return None
            hidden = self._advance(turn)
        assert hidden is not None
        last = hidden if len(hidden) == 1 else hidden[-1:]
        return self._runner.logits(last).view(-1)

    def _result(self, turn: Turn, reason: FinishReason) -> Result:
        answer, prompt = turn.answer, len(turn.request.token_ids)
        computed = min(turn.sequence.num_tokens, prompt) - turn.num_reused
        decode_s = turn.last_token_at - turn.first_token_at
        ended = turn.first_token_at or time.perf_counter()
        return Result(
            text="".join(turn.text),
            token_ids=tuple(answer),
            finish_reason=reason,
            usage=Usage(prompt, len(answer), turn.num_reused),
            timings=Timings(
                ttft_s=ended - turn.started,
                prefill_tokens_per_s=computed / turn.prefill_s if turn.prefill_s else 0.0,
                decode_tokens_per_s=(len(answer) - 1) / decode_s if decode_s else 0.0,
            ),
            exactness="exact" if turn.sequence.is_exact and not turn.has_selected else "selected",
            attention=self._runner.take_use(),
            cache=self.cache_use(turn.damaged_leaves),
            notices=tuple(turn.notices),
        )

    def warm_up(self) -> None:
        """Generate two tokens from nowhere: the first answer shall not pay for starting threads and kernels."""
        self._front.warm_up()
        nowhere, few = bytes(16), range(min(24, self._front.context_length - 2))
        if few:
            self.generate(Request(nowhere, few, durable=False, max_tokens=2), lambda _e: None, lambda: False)
            self.release(nowhere, forget=False)

    def release(self, sequence_id: bytes, *, forget: bool) -> None:
        """Drop a sequence from memory; with `forget`, from disk as well."""
        sequence = self._residency.sequences.get(sequence_id)
        if sequence is not None:
            if not forget:
                self._residency.flush(sequence)
            self._residency.release(sequence)
        if forget:
            self._residency.expectations.fulfilled(sequence_id)  # also of what was not warm
            if self._residency.mover.disk is not None:
                self._residency.mover.disk.forget(sequence_id)

    def embed(self, texts: Seq[Seq[int]]) -> NDArray[np.float32] | None:
        """Static vectors [N, D] of token lists; None while not loaded (any thread)."""
        runner = (
            self._loaded
        )  # the engine's thread may unload meanwhile: these weights then live until this is done
        return None if runner is None else runner.static.encode(texts)

    def cache_use(self, damaged_leaves: int | None = None) -> CacheUse:
        """Bytes per tier now and at their peaks; damaged leaves of one answer, or of all so far."""
        device, host, disk = (self._ledger[tier] for tier in Tier)
        return CacheUse(
            device_bytes=device.used,
            host_bytes=host.used,
            disk_bytes=disk.used,
            device_peak_bytes=device.peak,
            host_peak_bytes=host.peak,
            disk_peak_bytes=disk.peak,
            damaged_leaves=self._damaged_leaves if damaged_leaves is None else damaged_leaves,
            device_limit_bytes=device.capacity,
            host_limit_bytes=host.capacity,
            disk_limit_bytes=disk.capacity,
        )

    def where(self, sequence_id: bytes) -> str:
        """The highest tier of each column; any thread, see `EngineLike.where`."""
        sequence = self._residency.sequences.get(sequence_id)
        return "" if sequence is None else sequence.directory.letters()

    def moves(self) -> list[tuple[bytes, Move]]:
        """What moved between the tiers lately; any thread."""
        return self._residency.moves.latest()

    def hint(self, sequence_id: bytes, expect: Expect, ttl_s: float | None) -> None:
        """See `EngineLike.hint`; any thread."""
        self._residency.expectations.note(sequence_id, expect, ttl_s)

    def stored_paths(self, sequence_id: bytes) -> list[NDArray[np.int32]]:
        """Token ids [T] of every path that is stored of a sequence; any thread, none without a disk."""
        disk = self._residency.mover.disk
        return [] if disk is None else disk.stored_paths(sequence_id)

    def close(self) -> None:
        """Write what is durable, close the store and the tokenizer, free the pools."""
        disk = self._residency.mover.disk
        try:
            self._free_memory()
        finally:
            if disk is not None:
                disk.store.close()
            self._front.close()

    def _free_memory(self) -> None:
        self._loaded, mover = None, self._residency.mover
        try:
            for sequence in list(self._residency.sequences.values()):
                self._residency.flush(sequence)
                self._residency.release(sequence)
        finally:
            mover.device.close()
            mover.host.close()
            return_memory()
