"""The writing half of the store: one open segment per sequence, limits, what a failing drive does to it.

Knows quota, free-space floor and the error rules; not the index nor who reads. Callers hold the store's write
lock, but for `sync`, which waits for the drive outside of it.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from edgekv_storage.errors import DiskFull, QuotaExceeded, StoreOff, Unwritable, WriteFailed
from edgekv_storage.files import NO_ROOM
from edgekv_storage.segments.format import PAGE, footer_bytes
from edgekv_storage.segments.sections import section_bytes
from edgekv_storage.segments.segment import GROW_BYTES, MAX_SEGMENT_BYTES, SegmentWriter
from edgekv_storage.space.losses import FLOOR, QUOTA

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv_storage.crypt import Keys
    from edgekv_storage.io.disk import Disk
    from edgekv_storage.segments.format import Entry, Layout
    from edgekv_storage.segments.record import Extent, RecordTables
    from edgekv_storage.segments.segment import Segment
    from edgekv_storage.store.catalog import Catalog

_MAX_OPEN = 16
_MIN_SEGMENT_BYTES = 256 << 10  # a small quota needs small segments: eviction takes whole ones
_MAX_FAILURES = 3
_FAILURE_SECONDS = 60.0


def default_floor(disk: Disk, directory: Path) -> int:
    """Bytes to leave free on the user's drive: the larger of 5 GiB and 5 %. Raises OSError."""
    return max(5 << 30, disk.room(directory).total_bytes // 20)


class Writers:
    """Open segments by sequence, the least recently used first."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        catalog: Catalog,
        quota_bytes: int,
        floor_bytes: int,
        keys: Keys | None = None,
    ) -> None:
        self._disk = disk
        self._keys = keys
        self.quota_bytes = quota_bytes
        self.floor_bytes = floor_bytes
        self._segment_bytes = min(MAX_SEGMENT_BYTES, max(_MIN_SEGMENT_BYTES, quota_bytes // 16))
        self.notices: list[str] = []
        self.off_reason: str | None = None
        self.refused: tuple[str, int] = (QUOTA, 0)
        """By which limit the last append that found no room was refused, and the bytes it needed."""
        self._directory = directory
        self._catalog = catalog
        self._open: OrderedDict[bytes, SegmentWriter] = OrderedDict()
        self._failures: deque[float] = deque(maxlen=_MAX_FAILURES)
        self._written = 0  # by segments that are closed by now

    @property
    def bytes_written(self) -> int:
        """Bytes written to segment files: headers, tables, padding and footers included."""
        return self._written + sum(w.bytes_written for w in self._open.values())

    def append(
        self, sequence_id: bytes, layout: Layout, extent: Extent
    ) -> tuple[Segment, Entry, RecordTables]:
        """Raises QuotaExceeded, DiskFull, WriteFailed, StoreOff; ValueError for wrong shapes."""
        if self.off_reason is not None:
            raise StoreOff(self.off_reason)
        need = _record_estimate(extent, layout)
        writer = self._open.get(sequence_id)
        if writer is not None and (writer.is_full or writer.segment.end + need > self._segment_bytes):
            self._end(sequence_id)
            writer = None
        grow = self._make_room(need + (0 if writer else 2 * PAGE), sequence_id)
        try:
            writer = writer or self._start(sequence_id, layout)
            self._open.move_to_end(sequence_id)
            entry, tables = writer.append(extent, grow_bytes=grow)
        except OSError as error:
            raise self._failed(sequence_id, error) from error
        return writer.segment, entry, tables

    def snapshot(self) -> list[tuple[Segment, int, int]]:
        """(segment, its end, a duplicate descriptor) of what is not on the drive yet. Raises OSError."""
        found: list[tuple[Segment, int, int]] = []
        try:
            for writer in (w for w in self._open.values() if w.segment.synced < w.segment.end):
                fd = self._disk.dup(writer.fd)
                found.append((writer.segment, writer.segment.end, fd))
        except OSError:
            for _, _, fd in found:
                self._disk.close(fd)
            raise
        return found

    def sync(self, snapshot: list[tuple[Segment, int, int]]) -> list[tuple[Segment, OSError]]:
        """Waits for the drive, without any lock. Returns what failed; never tries twice.

        After a failed fsync the kernel may have dropped the bytes and call them clean: asking again would be
        told they are safe.
        """
        failed = []
        is_named = not any(segment.synced == 0 for segment, _, _ in snapshot)
        for segment, end, fd in snapshot:
            try:
                self._disk.sync(fd)
                if not is_named:  # a new file's name is lost with the power unless its directory is synced
                    self._disk.sync_directory(self._directory)
                    is_named = True
                segment.synced = max(segment.synced, end)
            except OSError as error:
                failed.append((segment, error))
            finally:
                self._disk.close(fd)
        return failed

    def sync_failed(self, segment: Segment, error: OSError) -> str:
        """Closes the segment to writing; returns what to tell the user."""
        sequence_id = segment.header.sequence_id
        writer = self._open.get(sequence_id)
        mine = sequence_id if writer is not None and writer.segment is segment else None
        return str(self._failed(mine, error))

    def seal(self, sequence_id: bytes) -> str | None:
        """Ends the sequence's open segment, where it has one; returns what went wrong, if anything did."""
        writer = self._open.pop(sequence_id, None)
        if writer is None:
            return None
        error: OSError | None = None
        try:
            writer.seal()
            if writer.segment.synced == 0:
                self._disk.sync_directory(self._directory)
            writer.segment.synced = writer.segment.file_bytes
        except OSError as failure:
            error = failure
        self._written += writer.bytes_written
        return None if error is None else str(self._failed(None, error))

    def _end(self, sequence_id: bytes) -> None:
        """Seals in passing: what went wrong is told later."""
        if problem := self.seal(sequence_id):
            self.notices.append(problem)

    def seal_all(self) -> list[str]:
        """Ends every open segment; returns what went wrong."""
        return [problem for sequence in list(self._open) if (problem := self.seal(sequence))]

    def discard(self, segment: Segment) -> None:
        """Closes a segment, if it is open; it is about to be deleted."""
        writer = self._open.get(segment.header.sequence_id)
        if writer is not None and writer.segment is segment:
            del self._open[segment.header.sequence_id]
            self.count_closed(writer)

    def count_closed(self, writer: SegmentWriter) -> None:
        """Closes a writer and counts what it wrote."""
        writer.abandon()
        self._written += writer.bytes_written

    def start_copy(self, sequence_id: bytes, layout: Layout) -> SegmentWriter:
        """A segment that compaction alone writes to. Raises OSError, StorageError."""
        return self._new_segment(sequence_id, layout)

    def check_room(self, sequence_id: bytes, layout: Layout, extent: Extent) -> int:
        """Bytes a copied extent may take. Raises QuotaExceeded, DiskFull."""
        need = _record_estimate(extent, layout) + 2 * PAGE
        self._make_room(need, sequence_id)
        return need

    def free_bytes(self) -> int:
        """Of the drive, the floor left out; negative where others took some of it. Raises Unwritable."""
        try:
            return self._disk.room(self._directory).free_bytes - self.floor_bytes
        except OSError as error:
            raise Unwritable(f"{self._directory} is gone: {error.strerror}") from error

    def failed(self, error: OSError) -> DiskFull | WriteFailed | StoreOff:
        """Counts a drive's error that met a copy; what to tell."""
        return self._failed(None, error)

    def _start(self, sequence_id: bytes, layout: Layout) -> SegmentWriter:
        if len(self._open) >= _MAX_OPEN:
            self._end(next(iter(self._open)))
        writer = self._open[sequence_id] = self._new_segment(sequence_id, layout)
        return writer

    def _new_segment(self, sequence_id: bytes, layout: Layout) -> SegmentWriter:
        key = None if self._keys is None else self._keys.need(sequence_id)
        number = self._catalog.next_segment
        writer = SegmentWriter(self._disk, self._directory, number, sequence_id, layout, key)
        with self._catalog.lock:
            self._catalog.add_segment(writer.segment)
        return writer

    def _make_room(self, need: int, sequence_id: bytes) -> int:
        """Checks quota and floor; returns the preallocation step that both allow."""
        live = self._catalog.live_bytes
        self.refused = (QUOTA, need)
        if live + need > self.quota_bytes:
            raise QuotaExceeded(
                f"the disk limit of {self.quota_bytes / 1e9:.1f} GB is reached: raise --disk-budget or "
                "forget a conversation"
            )
        free = self.free_bytes()
        self.refused = (FLOOR, need)
        if free < need:
            raise DiskFull(
                f"only {(free + self.floor_bytes) / 1e9:.1f} GB are free on the drive of {self._directory}, "
                f"and {self.floor_bytes / 1e9:.1f} GB are left to other programs: free some space"
            )
        slack = sum(w.slack for w in self._open.values())
        if live + slack + need > self.quota_bytes:  # others hold room they may never fill
            for other in [s for s in self._open if s != sequence_id]:
                self._end(other)
            return 0
        return GROW_BYTES if live + slack + need + GROW_BYTES <= min(self.quota_bytes, live + free) else 0

    def _failed(self, sequence_id: bytes | None, error: OSError) -> DiskFull | WriteFailed | StoreOff:
        """The error to raise; a drive's error closes the segment, and three in a minute the disk tier."""
        if error.errno in NO_ROOM:
            if sequence_id is not None:
                self._end(sequence_id)  # never appended to again: a nonce would repeat
            return DiskFull(f"the drive of {self._directory} is full ({error.strerror}): free some space")
        if sequence_id is not None:
            writer = self._open.pop(sequence_id, None)
            if writer is not None:
                self.count_closed(writer)
        now = time.monotonic()
        self._failures.append(now)
        if len(self._failures) == _MAX_FAILURES and now - self._failures[0] < _FAILURE_SECONDS:
            self.off_reason = (
                f"the disk tier turned itself off after {_MAX_FAILURES} drive errors within a minute "
                f"(the last: {error.strerror}): check the drive of {self._directory}, then start again"
            )
            return StoreOff(self.off_reason)
        return WriteFailed(f"writing to {self._directory} failed ({error.strerror}); this part was not kept")


def _record_estimate(extent: Extent, layout: Layout) -> int:
    """Bytes the record may take at most, the footer's growth included."""
    count, layers = len(extent.keys), layout.num_layers
    tables = count * (80 + 16 * layers) + 64 * len(extent.sections)
    sections = sum(map(section_bytes, extent.sections.values())) + PAGE
    runs = layers * (count * layout.leaf_bytes + (PAGE if count * layout.leaf_bytes % PAGE else 0))
    return runs + sections + tables + 2 * PAGE + footer_bytes(1)
