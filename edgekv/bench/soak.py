"""`bench soak`: whether every tier keeps its limit through a million tokens of many conversations in one Runtime.

The limits are far too small for what is said: columns are demoted, promoted, evicted and computed again all the
time. After every step the ledger's peaks, the segment files on disk and the process's memory are looked at; a limit
that is passed ends the run with an error.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING

from edgekv.bench.inside import engine_of
from edgekv.bench.memory import MemoryPeak, anonymous_bytes
from edgekv.bench.setting import SCRATCH_KEYS
from edgekv.bench.soak_party import Party
from edgekv.bench.tiers import ALLOWANCE_BYTES
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.checkup import check_up
from edgekv.errors import EdgeKVError
from edgekv.models.weights import decoder_bytes
from edgekv.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekv.bench.report import Labels, Row
    from edgekv.bench.setting import Setting
    from edgekv.bench.soak_party import Counts
    from edgekv.config import Config

TOKENS = 1_000_000
DEVICE_TOKENS, HOST_TOKENS, DISK_TOKENS = 2_048, 6_144, 24_576  # the limits, unless others are given
LONGEST_TOKENS = 8_000
BUDGET, PREFILL_BUDGET = 256, 512
_TELL_EVERY = 50_000


def default_limits(setting: Setting) -> dict[str, int]:
    """Options that fit the model: its tokens' KV, whatever that takes."""
    column = setting.shape.column_bytes
    return {
        "device_budget": DEVICE_TOKENS // LEAF_TOKENS * column,
        "host_budget": HOST_TOKENS // LEAF_TOKENS * column,
        "disk_budget": DISK_TOKENS // LEAF_TOKENS * column,
        "budget": BUDGET,
        "prefill_budget": PREFILL_BUDGET,
    }


def measure(setting: Setting, tokens: int, progress: Callable[[str], None]) -> list[Row]:
    """Rows of one run. Raises EdgeKVError at the step after which a tier held more than its limit."""
    config = setting.config
    assert config.device_budget is not None, "the command sets it"
    with setting.scratch() as folder:
        data_dir = folder / "data"
        watch = _Watch(config, data_dir)
        with MemoryPeak() as peak, _runtime(setting, data_dir) as runtime:
            private = min(LONGEST_TOKENS, _tokens(setting, config.device_budget + config.host_budget) // 3)
            party = Party(runtime, setting.text, random.Random(config.seed or 1), LONGEST_TOKENS, private)  # noqa: S311
            begun, told = time.perf_counter(), 0
            while party.counts.tokens < tokens:
                party.step()
                watch.look(runtime, party.counts)
                if party.counts.tokens >= told + _TELL_EVERY:
                    told = party.counts.tokens
                    progress(f"{told} tokens, {party.counts.steps} steps")
            seconds = time.perf_counter() - begun
            weights = decoder_bytes(setting.model.decoder)
        problems = len(check_up(data_dir, SCRATCH_KEYS).found.problems)
    labels = setting.labels(None)
    return [
        *_count_rows(labels, party.counts, seconds),
        *watch.rows(labels),
        *_memory_rows(labels, config, peak.bytes, weights, watch.memory),
        labels.row("check_problems", "found by `edgekv check`", ours=problems),
    ]


class _Watch:
    """The most that each tier ever held, looked at after every step."""

    def __init__(self, config: Config, data_dir: Path) -> None:
        assert config.device_budget is not None
        self._limits = {
            "device": config.device_budget,
            "host": config.host_budget,
            "disk": config.disk_budget,
        }
        self._data_dir = data_dir
        self._peaks = dict.fromkeys(self._limits, 0)
        self.memory: list[int] = []

    def look(self, runtime: Runtime, counts: Counts) -> None:
        """Raises EdgeKVError when a limit was passed."""
        use = runtime.stats().cache
        files = sum(_size(path) for path in self._data_dir.glob("seg-*.kv"))
        now = {
            "device": use.device_peak_bytes,
            "host": use.host_peak_bytes,
            "disk": max(use.disk_peak_bytes, files),
        }
        for tier, held in now.items():
            self._peaks[tier] = max(self._peaks[tier], held)
            if held > self._limits[tier]:
                raise EdgeKVError(
                    f"step {counts.steps}: the {tier} tier held {held} bytes, its limit is {self._limits[tier]}; "
                    "run it again with the same --seed"
                )
        self.memory.append(anonymous_bytes() or 0)

    def rows(self, labels: Labels) -> list[Row]:
        """Peak over limit of each tier."""
        return [
            labels.row(
                f"budget_honesty_{tier}",
                "peak/limit",
                ours=self._peaks[tier] / limit,
                ratio=limit / self._peaks[tier] if self._peaks[tier] else None,
            )
            for tier, limit in self._limits.items()
        ]


def _runtime(setting: Setting, data_dir: Path) -> Runtime:
    options = {
        "data_dir": data_dir,
        "model": str(setting.model_path),
        "key_protection": "file",
        "key_file": None,
    }
    runtime = Runtime(config=setting.config.replace(options))
    if runtime.degraded is not None:
        reason = runtime.degraded
        runtime.close()
        raise EdgeKVError(f"nothing can be kept on disk: {reason}; choose --data-dir")
    engine_of(runtime)
    return runtime


def _size(segment: Path) -> int:
    """Its bytes; 0 once the store's own thread has removed it."""
    try:
        return segment.stat().st_size
    except FileNotFoundError:
        return 0


def _tokens(setting: Setting, num_bytes: int) -> int:
    return num_bytes * LEAF_TOKENS // setting.shape.column_bytes


def _count_rows(labels: Labels, counts: Counts, seconds: float) -> list[Row]:
    figures = {
        "soak_tokens": ("tokens computed", counts.tokens),
        "soak_tokens_per_s": ("tok/s", counts.tokens / seconds),
        "soak_steps": ("steps", counts.steps),
        "reused_tokens": ("tokens", counts.reused_tokens),
        "longest_context": ("tokens", counts.longest_context),
        "selected_answers": ("answers", counts.selected_answers),
        "conversations_begun": ("conversations", counts.begun),
        "conversations_forgotten": ("conversations", counts.forgotten),
        "branches_made": ("branches", counts.branched),
        "evictions": ("answers told of one", counts.evictions),
        "damaged_leaves": ("leaves", counts.damaged_leaves),
    }
    return [labels.row(metric, unit, ours=value) for metric, (unit, value) in figures.items()]


def _memory_rows(
    labels: Labels, config: Config, peak: int | None, weights: int, memory: list[int]
) -> list[Row]:
    """RssAnon at its peak against what it may be; and how it grew from the run's second tenth to its last."""
    if not peak or not all(memory):
        return []
    tenth = max(1, len(memory) // 10)
    grown = statistics.median(memory[-tenth:]) - statistics.median(memory[tenth : 2 * tenth] or memory)
    allowed = weights + (config.device_budget or 0) + config.host_budget + ALLOWANCE_BYTES
    return [
        labels.row("process_memory_bytes", "bytes", ours=peak, peer=allowed),
        labels.row("process_memory_ratio", "used/allowed", ours=peak / allowed, ratio=allowed / peak),
        labels.row("process_memory_growth_bytes", "bytes, second tenth to last", ours=grown),
    ]
