"""`bench perplexity`: a long text streamed through a budget, against an exact sliding window over the same tokens.

The text is computed in the engine's blocks; every token but the first is predicted by the pass over the one before
it, so a block reads `--prefill-budget` tokens of its past. The window is the peer: as much device memory as it
needs is all that the budget may use on the device.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgekv.bench.inside import attend_by, residency_of, runner_of
from edgekv.bench.report import ratio
from edgekv.bench.setting import SEQUENCE
from edgekv.bench.sliding import SlidingAttention
from edgekv.cache.directory import Directory
from edgekv.cache.leaf import LEAF_TOKENS, num_columns
from edgekv.cache.sequence import Sequence as CachedSequence
from edgekv.errors import ConfigError
from edgekv.tiers.arrivals import Arrivals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from edgekv.bench.report import Row
    from edgekv.bench.setting import Setting
    from edgekv.config import Config
    from edgekv.engine.engine import Engine

TOKENS = 131_072
WINDOW = 7_500
BLOCK_TOKENS = 512
_ROWS = 64  # logits of so many tokens at a time: of a whole block they would be 100 MB
_INDEX_SHARE = 0.15  # of the KV, with room to spare: abstracts


@dataclass(slots=True)
class Streamed:
    """What one way of attending made of the text: nats of each token, in order."""

    nats: Tensor
    seconds: float = 0.0
    device_bytes: int = 0

    def perplexity(self, start: int = 0) -> float:
        """Over all predictions from number `start` on."""
        return math.exp(float(self.nats[start:].mean()))


def measure(
    setting: Setting, num_tokens: int, window: int, *, has_sink: bool, progress: Callable[[str], None]
) -> list[Row]:
    """Perplexities, speeds and device bytes of both. Raises ConfigError for a window beyond the trained one."""
    trained = setting.model.front.context_length
    if window + BLOCK_TOKENS > trained:
        raise ConfigError(
            f"--sliding-window {window} and a block of {BLOCK_TOKENS} pass the trained window of {trained}: "
            "give a smaller one"
        )
    ids = setting.text.take(num_tokens)
    window_bytes = (num_columns(window) + num_columns(BLOCK_TOKENS) + 1) * setting.shape.column_bytes
    progress(f"{num_tokens} tokens by selection")
    with setting.engine(_limits(setting, num_tokens, window_bytes)) as engine:
        ours = stream(engine, ids, progress)
    progress(f"{num_tokens} tokens by a window of {window}")
    exact = setting.roomy(num_tokens + 1).replace({"attention": "exact"})
    with setting.engine(exact) as engine:
        decoder = setting.model.decoder
        scale = decoder.config.head_dim**-0.5
        attend_by(engine, SlidingAttention(residency_of(engine), decoder.rope, window, scale, has_sink))
        theirs = stream(engine, ids, progress)
    theirs.device_bytes = window_bytes
    return _rows(setting, ids, window, ours, theirs, has_sink=has_sink)


def _limits(setting: Setting, num_tokens: int, device_bytes: int) -> Config:
    """The window's device memory, unless `--device-budget` says less; the rest of the text on the host."""
    config, kv = setting.config, num_columns(num_tokens + 1) * setting.shape.column_bytes
    device = min(device_bytes, config.device_budget or device_bytes)
    host = max(config.host_budget, int(kv * (1 + _INDEX_SHARE)))
    return config.replace({"device_budget": device, "host_budget": host})


@torch.inference_mode()
def stream(engine: Engine, ids: Sequence[int], progress: Callable[[str], None]) -> Streamed:
    """Nats of ids[1:], each given all before it as the engine attends to it."""
    runner, residency = runner_of(engine), residency_of(engine)
    directory = Directory(residency.mover.device.shape.num_layers)
    sequence = CachedSequence(SEQUENCE, durable=False, directory=directory)
    residency.sequences[SEQUENCE] = sequence
    residency.activate(sequence)
    found = Streamed(torch.empty(len(ids) - 1, dtype=torch.float64))
    size = min(BLOCK_TOKENS, residency.block_columns * LEAF_TOKENS)
    following = torch.tensor(ids[1:])
    begun = time.perf_counter()
    try:
        for start in range(0, len(ids) - 1, size):
            block = ids[start : min(start + size, len(ids) - 1)]
            hidden = runner.forward(sequence, block, Arrivals())
            for at in range(0, len(block), _ROWS):
                logits = runner.logits(hidden[at : at + _ROWS]).cpu()
                part = slice(start + at, start + at + len(logits))
                found.nats[part] = torch.nn.functional.cross_entropy(
                    logits, following[part], reduction="none"
                )
            if start % (16 * size) == 0:
                progress(f"{start + len(block)} tokens")
    finally:
        residency.stream.close()
        residency.activate(None)
        residency.release(sequence)
    found.seconds = time.perf_counter() - begun
    found.device_bytes = engine.cache_use().device_peak_bytes
    return found


def _rows(
    setting: Setting, ids: Sequence[int], window: int, ours: Streamed, theirs: Streamed, *, has_sink: bool
) -> list[Row]:
    labels = dataclasses.replace(setting.labels(len(ids)), budget=setting.config.prefill_budget)
    peer = f"(peer: exact window of {window}{' and the sink' if has_sink else ''})"
    both = [("perplexity", 0)]
    if len(ids) > window:
        both.append(("perplexity_beyond_window", window))
    rows = []
    for name, start in both:
        a, b = ours.perplexity(start), theirs.perplexity(start)
        rows.append(labels.row(name, peer, ours=a, peer=b, ratio=ratio(a, b, "lower")))
    speeds = [(len(ids) - 1) / found.seconds for found in (ours, theirs)]
    rows.append(
        labels.row(
            "prefill_tokens_per_s", "tok/s", ours=speeds[0], peer=speeds[1], ratio=speeds[0] / speeds[1]
        )
    )
    rows.append(
        labels.row("device_bytes", "bytes (peer: needed)", ours=ours.device_bytes, peer=theirs.device_bytes)
    )
    return rows
