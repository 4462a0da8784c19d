"""`bench decode`: how fast one token follows another when the context is cached.

The floor is what the memory's bandwidth allows: every weight once, and the keys and values of the context.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgekv.bench.alternate import alternate
from edgekv.bench.prefill import peer_once
from edgekv.bench.setting import generate
from edgekv.models.linear import Linear, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekv.bench.peer import LlamaCpp
    from edgekv.bench.report import Row
    from edgekv.bench.setting import Setting
    from edgekv.engine.engine import Engine
    from edgekv.models.decoder import Decoder
    from edgekv.models.linear import Stack

CONTEXTS = (512, 2048, 7936)
NUM_TOKENS = 64


def measure(setting: Setting, contexts: Sequence[int], runs: int, machine: Mapping[str, object]) -> list[Row]:
    """Tokens per second of 64 greedy tokens (the last 63 intervals), and the share of the floor."""
    setting.check_room(max(contexts) + NUM_TOKENS)
    rows = []
    for context in contexts:
        total = context + NUM_TOKENS
        ids = setting.text.take(context)
        with setting.engine(setting.roomy(total)) as engine, setting.peer(total) as peer:
            _ours(engine, ids)
            if peer is not None:
                peer_once(peer, ids)
                _peer(peer, ids)
            ours, peers = alternate(
                runs,
                lambda: _ours(engine, ids),  # noqa: B023  # called in this turn of the loop
                None if peer is None else lambda: _peer(peer, ids),  # noqa: B023
            )
        labels = setting.labels(context)
        row = labels.measured("decode_tokens_per_s", "tok/s", ours, peers, better="higher")
        rows.append(row)
        rate = machine.get("device_memory_read_gb_per_s") or machine["memory_read_gb_per_s"]
        assert isinstance(rate, float)
        attended = (context + NUM_TOKENS // 2) * setting.shape.column_bytes / 16
        floor_s = (bytes_per_token(setting.model.decoder) + attended) / (rate * 1e9)
        assert row.ours is not None
        rows.append(labels.row("eta_decode", "floor/measured", ours=floor_s * row.ours))
    return rows


def _ours(engine: Engine, ids: Sequence[int]) -> float:
    """Tokens per second; what the run before left of `ids` is reused."""
    return generate(engine, ids, NUM_TOKENS).timings.decode_tokens_per_s


def _peer(peer: LlamaCpp, ids: Sequence[int]) -> float:
    peer.shorten(len(ids) - 1)
    peer.feed(ids[-1:])
    token = peer.greedy()
    start = time.perf_counter()
    for _ in range(NUM_TOKENS - 1):
        peer.feed([token])
        token = peer.greedy()
    return (NUM_TOKENS - 1) / (time.perf_counter() - start)


def bytes_per_token(decoder: Decoder) -> int:
    """Bytes of weights that one token reads: all layers and the head in packed form."""
    parts = [p for layer in decoder.layers for p in (layer.qkv, layer.attn_out, layer.gate_up, layer.down)]
    return sum(_packed_bytes(part) for part in [*parts, decoder.head])


def _packed_bytes(part: Linear | Stack) -> int:
    if isinstance(part, Linear):
        return weight_bytes(part.weight)
    return sum(weight_bytes(each.weight) for each in part.parts)
