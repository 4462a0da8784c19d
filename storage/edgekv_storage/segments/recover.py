"""From files to segments at open: believe the index where the files agree, scan where they do not.

Knows segment files and the index; decides nothing about their leaves. What is not ours or newer is left
alone; what is ours and unreadable goes to quarantine/. Each such case gives one line of notice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv_storage.files import NO_ROOM, SegmentFile
from edgekv_storage.sealing import seal_of
from edgekv_storage.segments.format import (
    LEAF_TOKENS,
    PAGE,
    SEGMENT_BYTES,
    Malformed,
    Newer,
    SegmentHeader,
    footer_bytes,
)
from edgekv_storage.segments.quarantine import SEGMENT_NAME, Quarantine
from edgekv_storage.segments.segment import Segment, read_header, scan, segment_name, write_footer
from edgekv_storage.store.index import RecordRow, SegmentRow

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from pathlib import Path

    from edgekv_storage.crypt import Keys
    from edgekv_storage.io.disk import Disk, Item
    from edgekv_storage.segments.segment import Scan

_NO_SEGMENT = -1  # of a file whose number another one has: the rows are that one's


@dataclass(slots=True)
class Found:
    """What lies in a directory, and what the index has to learn of it."""

    segments: list[Segment] = field(default_factory=list)
    changed: list[Segment] = field(default_factory=list)
    records: list[RecordRow] = field(default_factory=list)
    gone: list[tuple[str, int]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    lost: list[tuple[bytes, int, int]] = field(default_factory=list)
    """Of segments set aside, where the index knew them: sequence id, tokens, bytes."""
    highest_id: int = 0  # also of files left alone: their ids are not given again


def segment_row(segment: Segment) -> SegmentRow:
    """The index row of a segment as it is now; an open one counts only as far as it is synced."""
    entries = segment.entries or []
    end, records = segment.end, segment.num_records
    if not segment.is_sealed and segment.synced < end:
        end = max(segment.synced, PAGE)
        records = sum(e.offset + e.record_bytes <= end for e in entries)
    return SegmentRow(
        segment.path.name,
        segment.header.pack()[:SEGMENT_BYTES],
        end,
        segment.file_bytes,
        segment.is_sealed,
        records,
        segment.num_damaged,
    )


def record_rows(segment_id: int, scanned: Scan) -> list[RecordRow]:
    """Index rows of scanned records."""
    return [
        RecordRow(segment_id, number, entry, tables.keys, tables.header.parent)
        for number, entry, tables in scanned.records
    ]


def find_segments(
    disk: Disk,
    directory: Path,
    rows: Iterable[SegmentRow],
    indexed: Callable[[int], list[RecordRow]],
    keys: Keys | None = None,
) -> Found:
    """Every segment of the directory, recovered and sealed where a crash left it open. Raises OSError.

    `indexed` gives the record rows of a segment, so that a scan starts where the index ends.
    """
    found = Found()
    known = {row.name: row for row in rows}
    items = disk.items(directory)
    twins = _twins(disk, directory, items, known, keys)
    for item in items:
        if not SEGMENT_NAME.fullmatch(item.name):
            continue
        found.highest_id = max(found.highest_id, int(item.name[4:20], 16))
        row = known.pop(item.name, None)
        if not item.is_file:
            found.notices.append(f"{item.name} is not a plain file and was left alone")
            continue
        path = directory / item.name
        if item.name in twins:
            lost = _tables_in(disk, path, keys)
            if _set_aside(disk, path, row, "another segment has its number", found):
                found.lost += lost
            continue
        segment = _from_row(path, row, item.num_bytes, keys) if row else None
        if segment is None:
            segment = _adopt(disk, path, row, indexed, found, keys)
        if segment is not None:
            segment.used_ns = item.used_ns
            found.segments.append(segment)
    found.gone += [(name, int(name[4:20], 16)) for name in known]
    numbers = {segment.header.segment for segment in found.segments}
    found.gone = [(name, _NO_SEGMENT if number in numbers else number) for name, number in found.gone]
    if locked := {s.header.sequence_id for s in found.segments if s.seal is None}:
        found.notices.append(
            f"the stored KV of {len(locked)} conversation(s) is encrypted, and encryption is off: it is kept, "
            "counted and not read"
        )
    return found


def _from_row(path: Path, row: SegmentRow, file_bytes: int, keys: Keys | None) -> Segment | None:
    """A sealed segment the index describes rightly, without touching the file."""
    if not row.is_sealed or row.file_bytes != file_bytes:
        return None
    try:
        header = SegmentHeader.unpack(row.header)
        seal = seal_of(header, keys)
    except Malformed:
        return None
    if segment_name(header.segment, header.random) != path.name:
        return None
    counts = row.num_records, row.num_damaged
    return Segment(header, path, row.end, file_bytes, True, *counts, synced=file_bytes, seal=seal)


def _adopt(
    disk: Disk,
    path: Path,
    row: SegmentRow | None,
    indexed: Callable[[int], list[RecordRow]],
    found: Found,
    keys: Keys | None,
) -> Segment | None:
    """A segment the index does not know to its end: scanned, cut to its good prefix, sealed."""
    file = SegmentFile(path, use_direct=False, disk=disk)
    try:
        header = read_header(file)
        file_bytes = file.num_bytes
        seal = seal_of(header, keys)
        if seal is None:
            return Segment(header, path, file_bytes, file_bytes, is_sealed=True, synced=file_bytes)
        old = _indexed_prefix(row, indexed, header, file_bytes)
        start = old[-1].entry.offset + old[-1].entry.record_bytes if old else PAGE
        result = scan(file, header, seal, start=start, number=len(old))
    except Newer as reason:
        found.notices.append(f"{path.name} was left alone: {reason}; another edgekv wrote it")
        return None
    except Malformed as reason:
        if _is_blank(file):
            disk.unlink(path)
            found.gone.append((path.name, int(path.name[4:20], 16)))
        else:
            _set_aside(disk, path, row, str(reason), found)
            _count_lost(path, row, indexed, found, keys)
        return None
    except OSError as error:
        found.notices.append(f"{path.name} cannot be read ({error.strerror}) and was left alone")
        return None
    if result.is_sealed:
        old = []  # the footer listed every record
    if not old and not result.records:
        disk.unlink(path)
        found.gone.append((path.name, header.segment))
        return None
    segment = Segment(header, path, result.end, file_bytes, result.is_sealed, result.num_records, seal=seal)
    if result.is_sealed:
        segment.num_damaged = len(result.problems)
        found.notices += [
            f"{path.name} at {at}: {why}; it will be computed again" for at, why in result.problems
        ]
    else:
        segment.entries = [r.entry for r in old] + [entry for _, entry, _ in result.records]
        _seal(disk, segment, found)
    segment.synced = segment.file_bytes
    segment.entries = None
    found.changed.append(segment)
    found.records += record_rows(header.segment, result)
    return segment


def _twins(
    disk: Disk, directory: Path, items: Iterable[Item], known: Container[str], keys: Keys | None
) -> set[str]:
    """Segments whose number another one has, as when two directories were merged: one of them is kept.

    What the index knows is; else what a key opens, as anybody may have made the other.
    """
    by_number: dict[str, list[str]] = {}
    for item in items:
        if item.is_file and SEGMENT_NAME.fullmatch(item.name):
            by_number.setdefault(item.name[4:20], []).append(item.name)
    found: set[str] = set()
    for names in by_number.values():
        if len(names) > 1:
            ours = [name for name in names if _is_ours(disk, directory / name)]
            ours.sort(key=lambda name: (name not in known, not _tables_in(disk, directory / name, keys)))
            found.update(ours[1:])
    return found


def _is_ours(disk: Disk, path: Path) -> bool:
    try:
        read_header(SegmentFile(path, use_direct=False, disk=disk))
    except (Malformed, OSError):
        return False
    return True


def _tables_in(disk: Disk, path: Path, keys: Keys | None) -> list[tuple[bytes, int, int]]:
    """What would be lost with a segment: (sequence id, tokens, bytes), nothing where no record opens."""
    file = SegmentFile(path, use_direct=False, disk=disk)
    try:
        header = read_header(file)
        seal = seal_of(header, keys)
        records = scan(file, header, seal).records if seal is not None else []
    except (Malformed, OSError):
        return []
    tokens = LEAF_TOKENS * sum(len(tables.keys) for _, _, tables in records)
    return [(header.sequence_id, tokens, file.num_bytes)] if tokens else []


def _is_blank(file: SegmentFile) -> bool:
    """Made by a process that was killed before it wrote anything: nothing is lost with it."""
    data = file.read(PAGE + 1, 0)
    return len(data) <= PAGE and not any(data)


def _indexed_prefix(
    row: SegmentRow | None, indexed: Callable[[int], list[RecordRow]], header: SegmentHeader, file_bytes: int
) -> list[RecordRow]:
    """Records of an unsealed segment that the index rightly knows; all or none."""
    if row is None or row.is_sealed or row.end > file_bytes or row.header != header.pack()[:SEGMENT_BYTES]:
        return []
    rows = indexed(header.segment)[: row.num_records]
    at = PAGE
    for number, record in enumerate(rows):
        if record.number != number or record.entry.offset != at:
            return []
        at += record.entry.record_bytes
    return rows if at == row.end and len(rows) == row.num_records else []


def _seal(disk: Disk, segment: Segment, found: Found) -> None:
    try:
        fd = disk.open(segment.path, os.O_RDWR)
        try:
            write_footer(disk, fd, segment)
            disk.sync(fd)
        finally:
            disk.close(fd)
        segment.is_sealed = True
    except OSError as error:
        segment.file_bytes = segment.end + footer_bytes(segment.num_records)
        if error.errno not in NO_ROOM:
            found.notices.append(f"{segment.path.name} could not be sealed ({error.strerror})")


def _set_aside(disk: Disk, path: Path, row: SegmentRow | None, reason: str, found: Found) -> bool:
    """Ours and unreadable: quarantine, where `forget` deletes it. Not known to be ours: left alone, False."""
    if row is None and "not a segment" in reason:
        found.notices.append(f"{path.name} was left alone: {reason}; move it away if it is yours")
        return False
    try:
        Quarantine(disk, path.parent).take(path)
    except OSError as error:
        found.notices.append(
            f"{path.name} cannot be believed ({reason}) and could not be moved to quarantine/ ({error.strerror})"
        )
        return False
    found.gone.append((path.name, int(path.name[4:20], 16)))
    found.notices.append(f"{path.name} cannot be believed ({reason}) and was moved to quarantine/")
    return True


def _count_lost(
    path: Path,
    row: SegmentRow | None,
    indexed: Callable[[int], list[RecordRow]],
    found: Found,
    keys: Keys | None,
) -> None:
    """Whose it was is believed only of the index: the file itself may be planted, or its header damaged."""
    if row is None:
        return
    try:
        header = SegmentHeader.unpack(row.header)
    except Malformed:
        return
    is_ours = segment_name(header.segment, header.random) == path.name
    if not is_ours or (keys is not None and keys.find(header.sequence_id) is None):  # that one was forgotten
        return
    num_leaves = sum(len(record.keys) for record in indexed(header.segment))
    found.lost.append((header.sequence_id, num_leaves * LEAF_TOKENS, row.file_bytes))
