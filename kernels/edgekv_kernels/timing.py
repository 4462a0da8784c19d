"""How fast the kernels are here and now: one row per operation, at the sizes of a SmolLM2-135M layer.

Knows the operations and their bytes or flops. Does not print, and keeps nothing. `edgekv doctor` and
`edgekv bench` show the rows; a rate is to be compared only with others of the same run.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgekv_kernels.abstracts import pack_keys, pack_nodes
from edgekv_kernels.attention import attend_block, attend_leaves
from edgekv_kernels.matmul import matmul4, matmul8
from edgekv_kernels.norm import rms_norm
from edgekv_kernels.packed import Packed4, Packed8
from edgekv_kernels.selection import score_leaves, score_nodes, select_leaves
from edgekv_kernels.unpack import unpack4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HIDDEN, _FFN, _VOCABULARY, _HEADS, _KV_HEADS, _DIM = 576, 1536, 49152, 9, 3, 64
_COLD_LAYERS = 30  # weights of this many layers are passed in turn, so that none stays in a cache


@dataclass(frozen=True, slots=True)
class Timing:
    """One operation: median seconds a call, and its rate in `unit` ("GB/s" read or "GFLOP/s")."""

    name: str
    seconds: float
    rate: float
    unit: str


def measure(repeats: int = 7) -> list[Timing]:
    """Time every kernel that decides the speed of decode and prefill; takes about two seconds."""
    return [
        *_products(repeats),
        *_decode_attention(repeats),
        *_selection(repeats),
        *_prefill_attention(max(repeats // 2, 1)),
    ]


def _median(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _random4(n: int, k: int) -> Packed4:
    quants = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    return Packed4(quants, torch.rand(n, k // 32).half(), torch.rand(n, k // 32).half())


def _products(repeats: int) -> Iterator[Timing]:
    shapes = ((960, _HIDDEN), (_HIDDEN, _HIDDEN), (2 * _FFN, _HIDDEN), (_HIDDEN, _FFN))
    layers = [[_random4(n, k) for n, k in shapes] for _ in range(_COLD_LAYERS)]
    num_bytes = sum(w.num_bytes for layer in layers for w in layer)
    for num_rows in (1, 4):
        inputs = {k: torch.randn(num_rows, k) for k in (_HIDDEN, _FFN)}

        def all_layers(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for layer in layers:
                for w in layer:
                    matmul4(inputs[w.shape[1]], w)

        seconds = _median(all_layers, repeats)
        yield Timing(
            f"matmul4, {_COLD_LAYERS} layers, M={num_rows}", seconds, num_bytes / seconds / 1e9, "GB/s"
        )

    def unpack_layers() -> None:
        for layer in layers:
            for w in layer:
                unpack4(w)

    seconds = _median(unpack_layers, max(repeats // 2, 1))
    yield Timing(f"unpack4, {_COLD_LAYERS} layers", seconds, num_bytes / seconds / 1e9, "GB/s")
    head_quants = torch.randint(-128, 128, (_VOCABULARY, _HIDDEN), dtype=torch.int8)
    head = Packed8(head_quants, torch.rand(_VOCABULARY, _HIDDEN // 32).half())
    x = torch.randn(1, _HIDDEN)
    seconds = _median(lambda: matmul8(x, head), repeats)
    yield Timing("matmul8, output head, M=1", seconds, head.num_bytes / seconds / 1e9, "GB/s")
    weight = torch.ones(_HIDDEN)
    seconds = _median(lambda: [rms_norm(x, weight, 1e-5) for _ in range(100)], repeats) / 100
    yield Timing("rms_norm, one token", seconds, x.nbytes / seconds / 1e9, "GB/s")


def _pool(num_tokens: int, copies: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A pool of `copies` sequences and each one's slots, scattered."""
    num_leaves = num_tokens // 16
    pool = torch.randn(copies * num_leaves, 2, _KV_HEADS, 16, _DIM).bfloat16()
    return pool, list(torch.randperm(len(pool)).int().view(copies, num_leaves))


def _decode_attention(repeats: int) -> Iterator[Timing]:
    for num_tokens in (1024, 4096, 8192):
        copies = max(65536 // num_tokens, 1)  # 50 MB: more than the caches hold
        pool, slots = _pool(num_tokens, copies)
        q = torch.randn(1, _HEADS, _DIM)

        def every_copy(
            q: torch.Tensor = q,
            pool: torch.Tensor = pool,
            slots: list[torch.Tensor] = slots,
            n: int = num_tokens,
        ) -> None:
            for each in slots:
                attend_leaves(q, pool, each, n, 0.125)

        seconds = _median(every_copy, repeats) / copies
        rate = pool.nbytes / copies / seconds / 1e9
        yield Timing(f"attend_leaves, T=1, {num_tokens} tokens", seconds, rate, "GB/s")


def _selection(repeats: int) -> Iterator[Timing]:
    """An index of every layer in turn, 512 candidate leaves and 800 nodes each."""
    num_leaves, num_nodes = 512, 800
    layers = [torch.randn(64, 2, _KV_HEADS, 16, _DIM).bfloat16() for _ in range(_COLD_LAYERS)]
    slots = torch.arange(64, dtype=torch.int32)
    keys = [pack_keys(pool, slots).repeat(num_leaves // 64, 1) for pool in layers]
    nodes = [pack_nodes(pool, slots).repeat(num_nodes // 8, 1) for pool in layers]
    q, chosen = torch.randn(1, _HEADS, _DIM), torch.empty(60, dtype=torch.int32)
    mass, promise = torch.empty(num_leaves), torch.empty(num_nodes)

    def leaves() -> None:
        for rows in keys:
            score_leaves(q, rows, None, 0, num_leaves, 0.125, out=mass)

    def all_nodes() -> None:
        for rows in nodes:
            score_nodes(q, rows, 0, num_nodes, 0.125, out=promise)

    def best() -> None:
        for rows in keys:
            select_leaves(q, rows, 0, num_leaves, len(chosen), 0.125, chosen)

    for name, call, rows in (
        ("score_leaves, 512 leaves", leaves, keys),
        ("select_leaves, 60 of 512", best, keys),
        ("score_nodes, 800 nodes", all_nodes, nodes),
    ):
        seconds = _median(call, repeats) / _COLD_LAYERS
        yield Timing(name, seconds, rows[0].nbytes / seconds / 1e9, "GB/s")
    pool, packed = layers[0], torch.empty_like(keys[0][:64])
    seconds = _median(lambda: pack_keys(pool, slots, packed), repeats)
    yield Timing("pack_keys, 64 leaves", seconds, pool.nbytes / 2 / seconds / 1e9, "GB/s")


def _prefill_attention(repeats: int) -> Iterator[Timing]:
    q = torch.randn(512, _HEADS, _DIM)
    for num_tokens in (512, 4096, 8192):
        pool, slots = _pool(num_tokens, 1)

        def attend(pool: torch.Tensor = pool, slots: torch.Tensor = slots[0], n: int = num_tokens) -> None:
            attend_leaves(q, pool, slots, n, 0.125)

        seconds = _median(attend, repeats)
        rate = 4 * 512 * num_tokens * _DIM * _HEADS / seconds / 1e9
        yield Timing(f"attend_leaves, T=512, {num_tokens} tokens", seconds, rate, "GFLOP/s")
    k, v = torch.randn(512, _KV_HEADS, _DIM), torch.randn(512, _KV_HEADS, _DIM)
    seconds = _median(lambda: attend_block(q, k, v, 0.125), repeats)
    yield Timing("attend_block, T=512", seconds, 2 * 512 * 513 * _DIM * _HEADS / seconds / 1e9, "GFLOP/s")
