"""`bench writes`: bytes that reach the disk for the bytes that had to, over a conversation of many turns.

Write amplification divides by the bytes of the new leaves and of what is kept of them to select by (low-bit keys,
abstracts of nodes): token ids, chain keys, checksums and padding count as overhead.

Twice: a conversation of the model's own, and one longer than its window, of made-up leaves through the store alone.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgekv.bench import crowd
from edgekv.bench.inside import store_of
from edgekv.bench.made_up import TEXT, MadeUp, open_store
from edgekv.bench.report import Labels
from edgekv.bench.setting import generate, storage_errors
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv_storage import MemoryKeys

if TYPE_CHECKING:
    from edgekv.bench.report import Row
    from edgekv.bench.setting import Setting

TURNS = 50
TURN_TOKENS = (64, 100)
LONG_TOKENS = 100_000
LONG_TURN_TOKENS = (20, 600)


def turn_lengths(turns: int) -> list[int]:
    """New tokens of each turn: between 64 and 100, most not a multiple of 16, the same in every run."""
    shortest, longest = TURN_TOKENS
    return [shortest + (turn * 17) % (longest - shortest + 1) for turn in range(turns)]


def measure(setting: Setting, turns: int) -> list[Row]:
    """One durable conversation, each turn one request, the store closed at the end."""
    lengths = turn_lengths(turns)
    total = sum(lengths)
    setting.check_room(total + 1)
    ids = setting.text.take(total)
    with setting.scratch() as folder:
        with setting.engine(setting.roomy(total + 1), folder / "store") as engine:
            store, stop = store_of(engine), 0
            for length in lengths:
                stop += length
                generate(engine, ids[:stop], durable=True)
        stats = store.stats()  # after close: footers are written
        in_files = sum(path.stat().st_size for path in (folder / "store").glob("seg-*.kv"))
    labels, leaves = setting.labels(total), stats.appended_leaf_bytes
    assert leaves == total // LEAF_TOKENS * setting.shape.column_bytes, "every full leaf was written once"
    written, index = stats.segment_bytes_written, stats.appended_section_bytes
    return [
        *_under_a_quota(setting),
        _amplification(labels, written, leaves + index),
        labels.row("segment_bytes_written", "bytes", ours=written),
        labels.row("segment_file_bytes", "bytes", ours=in_files),
        labels.row("leaf_bytes", "bytes", ours=leaves),
        labels.row("index_bytes", "bytes", ours=index),
        labels.row("sqlite_index_bytes_per_turn", "bytes", ours=stats.index_bytes_written / turns),
        labels.row("turns", "turns", ours=turns),
    ]


def long_turns(total: int) -> list[int]:
    """New tokens of each turn of a long conversation: 20 to 600, as questions and answers go; `total` in all."""
    shortest, longest = LONG_TURN_TOKENS
    lengths: list[int] = []
    while (left := total - sum(lengths)) > 0:
        lengths.append(min(left, shortest + (len(lengths) * 233) % (longest - shortest + 1)))
    return lengths


def measure_long(setting: Setting, total: int) -> list[Row]:
    """The same ratio over `total` tokens and their index, encrypted, flushed after each turn; no model runs."""
    lengths, leaves = long_turns(total), MadeUp(setting.shape, has_index=True)
    with setting.scratch() as folder, storage_errors():
        with open_store(folder / "store", setting.shape, keys=MemoryKeys()) as store:
            for length in lengths:
                leaves.grow(store, length)
                store.flush()
        stats = store.stats()  # after close: footers are written
        in_files = sum(path.stat().st_size for path in (folder / "store").glob("seg-*.kv"))
    labels = Labels(context=total, attention=None, text=TEXT)
    written, needed = stats.segment_bytes_written, stats.appended_leaf_bytes
    index = stats.appended_section_bytes
    rows = [
        _amplification(labels, written, needed + index),
        labels.row("segment_bytes_written", "bytes", ours=written),
        labels.row("segment_file_bytes", "bytes", ours=in_files),
        labels.row("leaf_bytes", "bytes", ours=needed),
        labels.row("index_bytes", "bytes", ours=index),
        labels.row("sqlite_index_bytes_per_turn", "bytes", ours=stats.index_bytes_written / len(lengths)),
        labels.row("turns", "turns", ours=len(lengths)),
    ]
    return [dataclasses.replace(row, encrypted=True) for row in rows]


def _amplification(labels: Labels, written: int, needed: int) -> Row:
    return labels.row("write_amplification", "written/needed", ours=written / needed, ratio=needed / written)


def _under_a_quota(setting: Setting) -> list[Row]:
    """Many conversations that share half of the room they write: eviction and compaction included."""
    labels = Labels(attention=None, text=crowd.TEXT)
    with setting.scratch() as folder:
        run = crowd.Crowd(folder / "store", setting.shape)
        stats = run.run()
    return [
        _amplification(labels, stats.segment_bytes_written, stats.appended_leaf_bytes),
        labels.row("compaction_copied_bytes", "bytes", ours=stats.copied_bytes),
        labels.row("disk_peak_of_limit", "ratio", ours=run.peak_bytes / run.quota_bytes),
    ]
