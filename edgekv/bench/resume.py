"""`bench resume`: a long conversation that another process stored, opened again, and its next answer's first token.

Time to first token runs from asking a loaded Runtime, whose store is open, for a conversation that is not in
memory, and includes reading its transcript, the template, tokenizing and the queue. Beside it: the same
tokens from nothing by both programs, and llama.cpp restoring the state it saved itself, both from ready ids.
Where no tokenizer is installed the engine alone resumes ids, and every row's `text` says so.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from edgekv.bench import talk
from edgekv.bench.alternate import alternate
from edgekv.bench.child import run_child
from edgekv.bench.inside import LeafBytes, store_of
from edgekv.bench.page_cache import drop_page_cache
from edgekv.bench.prefill import ours_once, peer_once
from edgekv.bench.setting import generate
from edgekv.bench.text import RANDOM
from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgekv.bench.peer import LlamaCpp
    from edgekv.bench.report import Labels, Row
    from edgekv.bench.setting import Setting

CONTEXT = 7936
COLD_RUNS = 5
_WARM_UP = 512


@dataclass(slots=True)
class _Figures:
    """Seconds to the first token, run by run, and what the resumes read."""

    cold: list[float] = field(default_factory=list)
    peer_cold: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    peer_restored: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    leaves_read: list[int] = field(default_factory=list)
    peer_state_bytes: int | None = None
    starts: list[float] = field(default_factory=list)


def measure(
    setting: Setting,
    contexts: Sequence[int],
    runs: int,
    cold_runs: int,
    machine: Mapping[str, object],
) -> list[Row]:
    """All rows of all contexts; what a longer one takes beside the shortest."""
    longest = max(len(turn) for turn in setting.text.turns)
    setting.check_fits(max(contexts) + longest + 1)
    rows: list[Row] = []
    for context in contexts:
        rows += _measure(setting, context, runs, cold_runs, machine)
    times = [row for row in rows if row.metric == "resume_ttft_s"]
    base = min(times, key=lambda row: row.context or 0)
    return rows + [row.share_of(base, "resume_ttft_of_shortest") for row in times if row is not base]


def _measure(
    setting: Setting, context: int, runs: int, cold_runs: int, machine: Mapping[str, object]
) -> list[Row]:
    longest = max(len(turn) for turn in setting.text.turns)
    has_text = setting.text.name != RANDOM
    text = setting.long_text(context)
    ids, figures = text.take(context), _Figures()
    in_window = context + longest + 1 <= setting.model.front.context_length
    with setting.scratch() as folder:
        run_child(
            "talk" if has_text else "store",
            setting.config,
            setting.model_path,
            store=str(folder / "store"),
            ids=ids,
        )
        with setting.peer(context + longest + 1 if in_window and cold_runs else 0) as peer:
            if cold_runs:
                _cold(setting, ids, peer, cold_runs, figures)
            _resumes(_Resume(setting, ids, folder, has_text), peer, runs, figures)
        for _ in range(min(runs, 3)):
            start = time.perf_counter()
            run_child("load", setting.config, setting.model_path)
            figures.starts.append(time.perf_counter() - start)
    return _rows(setting, setting.labels(context, text.name), figures, machine)


def _cold(setting: Setting, ids: list[int], peer: LlamaCpp | None, runs: int, figures: _Figures) -> None:
    """Everything computed, by both; afterwards the peer holds the whole context."""
    whole = ids + setting.text.turns[0]
    with setting.engine(setting.roomy(len(whole) + 1)) as engine:
        ours_once(engine, ids[:_WARM_UP])
        if peer is not None:
            peer_once(peer, ids[:_WARM_UP])
        figures.cold, figures.peer_cold = alternate(
            runs, lambda: ours_once(engine, whole), None if peer is None else lambda: peer_once(peer, whole)
        )


@dataclass(frozen=True, slots=True)
class _Resume:
    """Both programs' ways back to a stored conversation."""

    setting: Setting
    ids: list[int]
    folder: Path
    has_text: bool

    def ours(self, number: int, figures: _Figures, *, drop: bool) -> float:
        """Each turn begins differently, so that what a run before stored is of no use to this one."""
        store = self.folder / "store"
        if self.has_text:
            found = talk.resume(self.setting, store, len(self.ids), number, drop=drop)
            figures.read.append(found.bytes_read)
            figures.leaves_read.append(found.leaf_bytes_read)
            figures.reused.append(found.reused_tokens)
            return found.ttft_s
        whole = self.ids + self.setting.text.turns[number % len(self.setting.text.turns)]
        if drop:
            drop_page_cache(store)
        with self.setting.engine(self.setting.roomy(len(whole) + 1), store) as engine:
            leaves = LeafBytes(store_of(engine))
            result = generate(engine, whole, durable=True, at=time.perf_counter())
            figures.read.append(store_of(engine).stats().bytes_read)
            figures.leaves_read.append(leaves.num_bytes)
        figures.reused.append(result.usage.reused_tokens)
        return result.timings.ttft_s

    def peer(self, peer: LlamaCpp, number: int) -> float:
        """Its saved sequence state, then the new turn."""
        state = self.folder / "peer.state"
        drop_page_cache(state)
        start = time.perf_counter()
        peer.restore(state, len(self.ids))
        peer.feed(self.setting.text.turns[number % len(self.setting.text.turns)])
        peer.greedy()
        return time.perf_counter() - start


def _resumes(resume: _Resume, peer: LlamaCpp | None, runs: int, figures: _Figures) -> None:
    if peer is not None:
        peer.shorten(len(resume.ids))
        figures.peer_state_bytes = peer.save(resume.folder / "peer.state", resume.ids)
        resume.peer(peer, 0)
    resume.ours(0, _Figures(), drop=True)  # warms threads and kernels, not the pages
    for number in range(1, runs + 1):
        figures.resumed.append(resume.ours(number, figures, drop=True))
        if peer is not None:
            figures.peer_restored.append(resume.peer(peer, number))
    for number in range(runs + 1, 2 * runs + 1):
        figures.warm.append(resume.ours(number, _Figures(), drop=False))


def _rows(setting: Setting, labels: Labels, figures: _Figures, machine: Mapping[str, object]) -> list[Row]:
    if labels.text == RANDOM:
        labels = dataclasses.replace(labels, text=f"{RANDOM}, engine alone (no tokenizer)")
    assert labels.context is not None
    rows = [labels.measured("resume_ttft_s", "s", figures.resumed, figures.peer_cold, better="lower")]
    if figures.cold:
        rows.append(labels.measured("cold_ttft_s", "s", figures.cold, figures.peer_cold, better="lower"))
    rows += [
        labels.measured("resume_warm_ttft_s", "s", figures.warm, better="lower"),
        labels.measured("process_start_s", "s", figures.starts, better="lower"),
    ]
    if figures.peer_restored:
        restored = figures.resumed, figures.peer_restored
        rows.append(labels.measured("peer_restore_ttft_s", "s", *restored, better="lower"))
        rows.append(labels.row("peer_state_bytes", "bytes", peer=figures.peer_state_bytes))
    resumed = median(figures.resumed)
    if figures.cold:
        gain = median(figures.cold) / resumed
        rows.append(labels.row("resume_gain", "cold/resume", ours=gain, ratio=gain))
    reused = min(figures.reused)
    rows.append(labels.row("reused_tokens", "tokens", ours=reused, ratio=reused / labels.context))
    return rows + _read_rows(setting, labels, figures, machine)


def _read_rows(
    setting: Setting, labels: Labels, figures: _Figures, machine: Mapping[str, object]
) -> list[Row]:
    """What was read before the first token, of the conversation's KV, and how near to the drive's limit."""
    read, leaves = median(figures.read), median(figures.leaves_read)
    kv = min(figures.reused) // LEAF_TOKENS * setting.shape.column_bytes
    rows = [labels.row("resume_bytes_read", "bytes", ours=int(read))]
    if setting.selects and kv:
        rows.append(labels.row("resume_read_share", "of the KV, in all", ours=read / kv))
        rows.append(labels.row("resume_index_share", "of the KV, abstracts", ours=(read - leaves) / kv))
    bandwidth = machine.get("disk_read_mb_per_s")
    if isinstance(bandwidth, float):
        floor = read / (bandwidth * 1e6)
        rows.append(labels.row("eta_resume", "floor/measured", ours=floor / median(figures.resumed)))
    return rows
