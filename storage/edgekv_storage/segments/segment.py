"""One segment file: append, end, scan. Knows files and the format; not the index, the quota or where keys are.

A segment belongs to one sequence. It is written by the process that created it and by nobody after a restart:
what a crash left is cut to its good prefix and sealed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv_storage.crypt import NO_KEY_ID, TAG_BYTES
from edgekv_storage.files import write_all
from edgekv_storage.io.buffers import BufferPool
from edgekv_storage.sealing import PLAIN
from edgekv_storage.segments.format import (
    FOOTER_MAGIC,
    PAGE,
    RECORD_BYTES,
    TAIL_BYTES,
    Entry,
    Malformed,
    SegmentHeader,
    footer_bytes,
    footer_place,
    pack_footer,
    round_up,
    unpack_footer,
)
from edgekv_storage.segments.record import Extent, RecordBuilder, RecordTables, parse_header, parse_tables

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv_storage.crypt import ConversationKey, Seal
    from edgekv_storage.files import SegmentFile
    from edgekv_storage.io.disk import Disk
    from edgekv_storage.segments.format import Layout

GROW_BYTES = 4 << 20
_START_BYTES = 1 << 20  # the drive works while the next extents are sealed
MAX_SEGMENT_BYTES = 64 << 20  # then the sequence goes on in another file: dropping and copying stay cheap
_GUESS = 2 * PAGE  # most records' tables fit in one read of this
_SCRATCH_BYTES = 256 << 10  # encrypted and written at a time: fits the cache between the two
_scratches = BufferPool(keep_bytes=4 << 20)  # of 1 MiB leaves too


def segment_name(segment: int, random: int) -> str:
    """File name of a segment."""
    return f"seg-{segment:016x}-{random:016x}.kv"


@dataclass(slots=True)
class Segment:
    """What the store knows of one segment. `end` is behind its last record; `entries` are kept while open.

    `seal` opens its records; None: it cannot be read now, only counted and deleted.
    """

    header: SegmentHeader
    path: Path
    end: int = PAGE
    file_bytes: int = PAGE
    is_sealed: bool = False
    num_records: int = 0
    num_damaged: int = 0  # of num_records, left out when scanned
    synced: int = 0  # bytes known to have reached the drive
    entries: list[Entry] | None = field(default=None, repr=False)
    reserved_bytes: int = 0  # of a copy being made: what its next record will take
    used_ns: int = 0  # last append or lookup, since 1970; the file's time keeps it over a restart
    seal: Seal | None = field(default=None, repr=False)
    is_own: bool = False  # written by this process: the catalog has all its records that count

    @property
    def live_bytes(self) -> int:
        """Bytes that count against the quota: what the file holds, or will hold once sealed."""
        if self.is_sealed:
            return self.file_bytes
        return self.end + self.reserved_bytes + footer_bytes(self.num_records)

    def keep_use(self, disk: Disk) -> None:
        """Makes `used_ns` the file's time, for the next start; a guess would do, so nothing is synced."""
        disk.set_time(self.path, self.used_ns)


class SegmentWriter:
    """Appends to a new segment, from one thread at a time."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        segment: int,
        sequence_id: bytes,
        layout: Layout,
        key: ConversationKey | None = None,
    ) -> None:
        """Creates the file; without a key it is not encrypted. Raises OSError."""
        self.disk = disk
        key_id = NO_KEY_ID if key is None else key.key_id
        header = SegmentHeader(segment, secrets.randbits(64), sequence_id, layout, key_id)
        path = directory / segment_name(segment, header.random)
        self._seal = PLAIN if key is None else key.segment_seal(segment, header.random)
        self._is_spent = False
        self.segment = Segment(header, path, entries=[], seal=self._seal, is_own=True)
        self.bytes_written = 0
        self.allocated = 0
        self._started = 0  # bytes on their way to the drive
        self._can_preallocate = True
        self.fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self.bytes_written += write_all(self.disk, self.fd, [header.pack()], 0)
        except OSError:
            self.abandon()
            disk.unlink(path)
            raise

    def append(self, extent: Extent, *, grow_bytes: int = GROW_BYTES) -> tuple[Entry, RecordTables]:
        """Writes one record in full. ValueError for wrong shapes; OSError, after which only `seal` or `abandon`
        may follow: writing other bytes under the same record number would use a nonce twice.

        `grow_bytes` is the step of preallocation; 0 takes no more room than the record needs.
        """
        segment = self.segment
        if self._is_spent:
            raise OSError(errno.EIO, "an append to this segment failed before")
        builder = RecordBuilder(extent, segment.header, segment.num_records, self._seal)
        entry = builder.entry(segment.end)
        self._is_spent = True  # whatever goes wrong from here on, not only what a drive reports
        try:
            self._reserve(entry.offset + entry.record_bytes, grow_bytes)
            self._write(builder, entry)
        except BaseException:  # an interrupt too must leave no half record
            with contextlib.suppress(OSError):
                self.disk.truncate(self.fd, segment.end)
            self.allocated = segment.end
            raise
        assert segment.entries is not None
        assert builder.tables is not None
        segment.entries.append(entry)
        segment.num_records += 1
        segment.end = segment.file_bytes = entry.offset + entry.record_bytes
        self._is_spent = False
        if segment.end - self._started >= _START_BYTES:
            self.disk.start_sync(self.fd, self._started, segment.end - self._started)
            self._started = segment.end
        return entry, builder.tables

    def _write(self, builder: RecordBuilder, entry: Entry) -> None:
        layout = self.segment.header.layout
        scratch = _scratches.take(max(_SCRATCH_BYTES, layout.leaf_bytes + PAGE + TAG_BYTES))
        written = 0
        try:
            for at, buffers in builder.pieces(scratch):
                written += write_all(self.disk, self.fd, buffers, entry.offset + at)
        finally:
            _scratches.give(scratch)
            self.bytes_written += written
        assert written == entry.record_bytes, "the record is not as long as its header says"

    @property
    def is_full(self) -> bool:
        """Whether nothing may be appended any more: something went wrong in the middle of an append."""
        return self._is_spent

    def sync(self) -> None:
        """Raises OSError, after which the segment must not be written again."""
        self.disk.sync(self.fd)

    def seal(self) -> None:
        """Footer, truncation of what was preallocated, fdatasync, close. Raises OSError (still closed)."""
        segment = self.segment
        assert segment.entries is not None
        try:
            self.bytes_written += write_footer(self.disk, self.fd, segment)
            self.disk.sync(self.fd)
        finally:
            self.abandon()
        segment.is_sealed = True
        segment.entries = None

    def abandon(self) -> None:
        """Closes the file; what is in it stays readable and is sealed at the next start."""
        if self.fd >= 0:
            self.disk.close(self.fd)
            self.fd = -1

    @property
    def slack(self) -> int:
        """Bytes preallocated behind the last record."""
        return max(0, self.allocated - self.segment.end)

    def _reserve(self, end: int, grow_bytes: int) -> None:
        if end <= self.allocated or not self._can_preallocate:
            return
        target = round_up(end, grow_bytes or PAGE)
        self._can_preallocate = self.disk.reserve(self.fd, self.segment.end, target - self.segment.end)
        self.allocated = target if self._can_preallocate else end


def write_footer(disk: Disk, fd: int, segment: Segment) -> int:
    """Cuts the file behind its last record and ends it with a footer; returns the footer's bytes."""
    assert segment.entries is not None
    footer = pack_footer(segment.header.segment, segment.end, segment.entries)
    disk.truncate(fd, segment.end)
    try:
        written = write_all(disk, fd, [footer], segment.end)
    except OSError:
        with contextlib.suppress(OSError):  # half a footer would look like damage
            disk.truncate(fd, segment.end)
        raise
    disk.truncate(fd, segment.end + written)  # gives back what was preallocated behind it
    segment.file_bytes = segment.end + written
    return written


def read_header(file: SegmentFile) -> SegmentHeader:
    """Raises Malformed, Newer, OSError."""
    header = SegmentHeader.unpack(file.read(PAGE, 0))
    if segment_name(header.segment, header.random) != file.path.name:
        raise Malformed("its name and its header disagree")
    return header


def read_tables(
    file: SegmentFile, header: SegmentHeader, number: int, offset: int, seal: Seal
) -> RecordTables:
    """Verified tables of the record at `offset`. Raises Malformed, OSError."""
    data = file.read(_GUESS, offset)
    needed = RECORD_BYTES + parse_header(data, header, number).table_bytes
    if len(data) < needed <= file.num_bytes:  # a planted header cannot ask for more than there is
        data += file.read(needed - len(data), offset + len(data))
    return parse_tables(data, header, number, seal)


@dataclass(slots=True)
class Scan:
    """Records found in a segment, in order; damaged ones of a sealed segment are left out and named."""

    records: list[tuple[int, Entry, RecordTables]]
    end: int
    is_sealed: bool
    problems: list[tuple[int, str]]
    num_records: int  # the damaged ones of a sealed segment included


def scan(file: SegmentFile, header: SegmentHeader, seal: Seal, *, start: int = PAGE, number: int = 0) -> Scan:
    """Reads every record's tables, by the footer where there is a good one, else one after the other.

    Without a footer it stops at the first bad record. `start` and `number` say where records already known
    end; they are for unsealed segments. Raises OSError.
    """
    file_bytes = file.num_bytes
    entries = _read_footer(file, header, file_bytes)
    if entries is not None:
        return _read_listed(file, header, seal, entries)
    result = Scan([], start, is_sealed=False, problems=[], num_records=number)
    while result.end + RECORD_BYTES <= file_bytes:
        try:
            tables = read_tables(file, header, number, result.end, seal)
        except Malformed as reason:
            result.problems.append((result.end, str(reason)))
            break
        entry = tables.entry(result.end)
        if entry.offset + entry.record_bytes > file_bytes:
            result.problems.append((result.end, "the last record is cut short"))
            break
        result.records.append((number, entry, tables))
        result.end += entry.record_bytes
        number += 1
        result.num_records = number
    return result


def _read_footer(file: SegmentFile, header: SegmentHeader, file_bytes: int) -> list[Entry] | None:
    tail = file.read(TAIL_BYTES, max(0, file_bytes - TAIL_BYTES))
    place = footer_place(tail, file_bytes) if tail.endswith(FOOTER_MAGIC) else None
    if place is None:
        return None
    try:
        entries = unpack_footer(file.read(place[1], place[0]), header.segment)
    except Malformed:
        return None
    end = PAGE
    for entry in entries:
        if entry.offset != end or entry.record_bytes % PAGE or not entry.record_bytes:
            return None
        end += entry.record_bytes
    return entries if end == place[0] else None


def _read_listed(file: SegmentFile, header: SegmentHeader, seal: Seal, entries: list[Entry]) -> Scan:
    result = Scan([], PAGE, is_sealed=True, problems=[], num_records=len(entries))
    for number, entry in enumerate(entries):
        try:
            tables = read_tables(file, header, number, entry.offset, seal)
            if tables.entry(entry.offset) != entry:
                result.problems.append((entry.offset, "the record is not what the footer says"))
                continue
        except Malformed as reason:
            result.problems.append((entry.offset, str(reason)))
            continue
        result.records.append((number, entry, tables))
    result.end = entries[-1].offset + entries[-1].record_bytes if entries else PAGE
    return result
