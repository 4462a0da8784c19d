"""`bench decode`: how fast one token follows another when the context is cached.

One sequence grows from context to context; after each timed run it is cut back and ends otherwise. Everything lies
in the device pool, unless `--device-budget` is given: then the limits hold, and what they do not take lies on disk.
At each context the memory is measured before each timed run, for the floor: on a shared machine it moves by half
within minutes.
How much of the speed at a short context is left at a longer one is told by runs in turn with a second engine that
holds the short one: machines change their speed within minutes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING

from edgekv.bench.alternate import alternate
from edgekv.bench.filling import COMPUTED, SEQUENCES, Filling
from edgekv.bench.floor import decode_floor
from edgekv.bench.inside import tier_bytes
from edgekv.bench.machine import memory_read_rate
from edgekv.bench.setting import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgekv.bench.peer import LlamaCpp
    from edgekv.bench.report import Labels, Row
    from edgekv.bench.setting import Setting
    from edgekv.engine.engine import Engine
    from edgekv.events import AttentionUse

CONTEXTS = (512, 2048, 7936)
NUM_TOKENS = 64
PEER_CONTEXT = 32_768
KEPT_FROM = 2048
TURN_TOKENS = 32
TURN_APART = 1_009  # tokens


@dataclass(slots=True)
class _Ours:
    """Our side at one context; what each run read goes to `uses`.

    Every run ends with another short turn, taken from elsewhere in the text, so that it is answered from other
    leaves: behind the same turn, leaves that the first run brought from disk would serve all that follow.
    """

    engine: Engine
    ids: Sequence[int]
    durable: bool
    uses: list[AttentionUse] = field(default_factory=list)

    def __call__(self) -> float:
        """Tokens per second; what the run before left of `ids` is reused, but for its last turn."""
        size = min(TURN_TOKENS, len(self.ids) // 2)
        start = len(self.uses) * TURN_APART % (len(self.ids) - size)
        ids = [*self.ids[: len(self.ids) - size], *self.ids[start : start + size]]
        result = generate(self.engine, ids, NUM_TOKENS, durable=self.durable)
        self.uses.append(result.attention)
        return result.timings.decode_tokens_per_s


@contextmanager
def _engine(setting: Setting, num_tokens: int) -> Iterator[Engine]:
    """With room for so many tokens, or under the limits that were given."""
    if setting.config.device_budget is None:
        with setting.engine(setting.roomy(num_tokens)) as engine:
            yield engine
    else:
        with setting.scratch() as folder, setting.engine(setting.config, folder / "store") as engine:
            yield engine


@dataclass(frozen=True, slots=True)
class _Peer:
    """llama.cpp's at as many tokens."""

    peer: LlamaCpp
    filling: Filling
    context: int

    def __call__(self) -> float:
        """Tokens per second."""
        peer, filling = self.peer, self.filling
        filling.grow(self.context - 1)
        peer.feed(filling.ids[self.context - 1 : self.context])
        token = peer.greedy()
        start = time.perf_counter()
        for _ in range(NUM_TOKENS - 1):
            peer.feed([token])
            token = peer.greedy()
        return (NUM_TOKENS - 1) / (time.perf_counter() - start)


@dataclass(frozen=True, slots=True)
class _Memory:
    """How fast memory could be read right before each run, bytes per second."""

    rates: list[float] = field(default_factory=list)

    def before(self, run: Callable[[], float]) -> Callable[[], float]:
        """`run`, measured before."""

        def measured() -> float:
            self.rates.append(memory_read_rate())
            return run()

        return measured


def measure(
    setting: Setting,
    contexts: Sequence[int],
    runs: int,
    machine: Mapping[str, object],
    peer_context: int | None = PEER_CONTEXT,
) -> list[Row]:
    """Tokens per second of 64 greedy tokens (the last 63 intervals), and the share of the floor.

    llama.cpp runs at contexts of up to `peer_context` tokens.
    """
    contexts = sorted(set(contexts))
    longest, peer_context = contexts[-1] + NUM_TOKENS, peer_context or 0
    setting.check_fits(longest)
    text = setting.long_text(longest)
    compared = max((context for context in contexts if context <= peer_context), default=0)
    num_cells = compared + NUM_TOKENS + COMPUTED if compared else 0
    rows: list[Row] = []
    base = KEPT_FROM if KEPT_FROM in contexts else contexts[0]
    with ExitStack() as stack:
        is_limited = setting.config.device_budget is not None
        engine = stack.enter_context(_engine(setting, longest))
        peer = stack.enter_context(setting.peer(num_cells, num_sequences=SEQUENCES))
        filling = None if peer is None else Filling(peer, text.ids)
        short: _Ours | None = None
        for context in contexts:
            ours = _Ours(engine, text.take(context), durable=is_limited)
            theirs = None
            if peer is not None and filling is not None and context <= peer_context:
                theirs = _Peer(peer, filling, context)
                theirs()
            ours()
            memory = _Memory()
            figures = alternate(runs, memory.before(ours), theirs)
            labels = setting.labels(context, text.name)
            rows += _rows(setting, labels, context, figures, ours.uses[1:], machine, memory.rates)
            rows.append(labels.measured("memory_read", "bytes/s", memory.rates, better="higher"))
            if is_limited:
                rows += _tier_rows(labels, engine)
            if context > base:
                if short is None:
                    beside = stack.enter_context(_engine(setting, base + NUM_TOKENS))
                    short = _Ours(beside, text.take(base), durable=is_limited)
                    short()
                kept = [long / brief for long, brief in zip(*alternate(runs, ours, short), strict=True)]
                unit = f"of that at {base:,}"
                rows.append(labels.measured("decode_speed_kept", unit, kept, better="higher"))
    return rows


def _rows(
    setting: Setting,
    labels: Labels,
    context: int,
    figures: tuple[list[float], list[float]],
    uses: Sequence[AttentionUse],
    machine: Mapping[str, object],
    memory: Sequence[float],
) -> list[Row]:
    row = labels.measured("decode_tokens_per_s", "tok/s", *figures, better="higher")
    rows, attended, promoted = [row], context + NUM_TOKENS / 2, 0.0
    if setting.selects:
        attended = mean(use.mean_tokens for use in uses) or attended
        promoted = mean(use.promoted_bytes for use in uses) / NUM_TOKENS
        rows.append(labels.row("attended_tokens", "tokens, mean", ours=attended))
        rows.append(labels.row("promoted_bytes_per_token", "bytes from disk", ours=promoted))
    shares = []
    for rate, speed in zip(memory, figures[0], strict=True):
        now = {**machine, "memory_read_gb_per_s": rate / 1e9}
        shares.append(decode_floor(setting, now, context, attended, promoted) * speed)
    rows.append(labels.measured("eta_decode", "floor/measured", shares, better="higher"))
    return rows


def _tier_rows(labels: Labels, engine: Engine) -> list[Row]:
    """Where the KV and its abstracts lie now."""
    return [
        labels.row(f"{tier}_{what}_bytes", "bytes", ours=size)
        for tier, sizes in tier_bytes(engine).items()
        for what, size in sizes.items()
    ]
