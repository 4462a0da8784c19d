"""`bench encryption`: what encryption at rest costs when leaves are written and read back; plain is the peer.

Made-up leaves of the model's layout through the store alone, plain and encrypted in turn, page cache dropped
before every read. A ratio of 1 is no cost; processor seconds stand beside the rates, because a drive can hide
what the processor pays.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from functools import partial
from typing import TYPE_CHECKING

from edgekv.bench.made_up import TEXT, MadeUp, open_store
from edgekv.bench.page_cache import drop_page_cache
from edgekv.bench.report import Labels
from edgekv.bench.setting import storage_errors
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv_storage import MemoryKeys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekv.bench.report import Better, Row
    from edgekv.bench.setting import Setting
    from edgekv.cache.leaf import LeafShape
    from edgekv_storage import Keys, Store

TOKENS = 16_384
EXTENT_TOKENS = 256  # of one append, as a prefill step or a long turn makes them
_RUN = EXTENT_TOKENS // LEAF_TOKENS


def _timed(action: Callable[[], int]) -> tuple[float, float]:
    """(bytes a second, processor seconds for each 10^9 bytes) of an action that returns its bytes."""
    wall, processor = time.perf_counter(), time.process_time()
    num_bytes = action()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return num_bytes / wall, processor / num_bytes * 1e9


def _one_run(folder: Path, shape: LeafShape, tokens: int, io: str, keys: Keys | None) -> dict[str, float]:
    leaves = MadeUp(shape)
    cost: dict[str, float] = {}

    def write(store: Store) -> int:
        for _ in range(tokens // EXTENT_TOKENS):
            leaves.grow(store, EXTENT_TOKENS)
        store.flush()
        return len(leaves.places) * shape.column_bytes

    with open_store(folder, shape, keys=keys, io=io) as store:
        cost["append"], cost["append_cpu"] = _timed(lambda: write(store))
    with open_store(folder, shape, keys=keys, io=io) as store:
        leaves.read(store, 1, len(leaves.places))  # threads are started, tables read
        for name, run, step in (("run", _RUN, _RUN), ("leaf", 1, 3)):
            drop_page_cache(folder)
            cost[name], cost[f"{name}_cpu"] = _timed(partial(leaves.read, store, run, step))
    shutil.rmtree(folder)
    return cost


def measure(setting: Setting, tokens: int, runs: int) -> list[Row]:
    """Appends of 256 tokens, reads of whole runs of them, reads of every third leaf alone."""
    shape = setting.shape
    with setting.scratch() as folder, storage_errors():
        costs = _alternated(folder / "store", shape, tokens, runs, setting.config.io)
    labels = Labels(context=tokens, attention=None, text=TEXT)
    rows = []
    for name, metric, size in (
        ("append", "append_bytes_per_s", _RUN * shape.column_bytes),
        ("run", "read_bytes_per_s", _RUN * shape.leaf_bytes),
        ("leaf", "read_bytes_per_s", shape.leaf_bytes),
    ):
        kinds: tuple[tuple[str, str, str, Better], ...] = (
            (name, metric, "bytes/s", "higher"),
            (f"{name}_cpu", f"{metric.partition('_')[0]}_cpu_s_per_gb", "s/GB", "lower"),
        )
        for key, title, unit, better in kinds:
            ours, plain = ([cost[key] for cost in kind] for kind in costs)
            row = labels.measured(title, unit, ours, plain, better=better)
            rows.append(dataclasses.replace(row, size=size, encrypted=True))
    return rows


def _alternated(
    folder: Path, shape: LeafShape, tokens: int, runs: int, io: str
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    ours: list[dict[str, float]] = []
    plain: list[dict[str, float]] = []
    for run in range(runs):
        for figures in (
            (ours, plain) if run % 2 else (plain, ours)
        ):  # what one leaves behind falls on both alike
            keys = MemoryKeys() if figures is ours else None
            figures.append(_one_run(folder, shape, tokens, io, keys))
    return ours, plain
