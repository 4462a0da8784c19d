"""What a store counts. Knows no store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counted since open, but for the first four. All sizes in bytes."""

    live_bytes: int
    quota_bytes: int
    num_segments: int
    num_sequences: int
    segment_bytes_written: int  # headers, tables, padding and footers included
    index_bytes_written: int  # to SQLite's journal
    appended_leaf_bytes: int
    appended_section_bytes: int  # as they were handed over
    reads: int  # after neighbours were joined
    bytes_read: int
    damaged_leaves: int
    copied_bytes: int  # of leaves, by compaction
