"""Walks a segment byte by byte, by docs/format.md alone: neither the index nor a running store is asked.

Reads only. Slow on purpose: every checksum of every leaf is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv_storage.files import SegmentFile
from edgekv_storage.format import PAGE, Malformed
from edgekv_storage.io.disk import OS_DISK
from edgekv_storage.sealing import PLAIN
from edgekv_storage.segment import read_header, scan

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv_storage.crypt import Seal
    from edgekv_storage.format import Entry
    from edgekv_storage.io.disk import Disk
    from edgekv_storage.record import RecordTables


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a file that is not as it was written."""

    file: str
    offset: int
    reason: str


def check_segment(
    path: Path, *, end: int | None = None, disk: Disk = OS_DISK, seal: Seal = PLAIN
) -> list[Problem]:
    """Problems of one segment that `seal` opens.

    `end` is where an unsealed one should end (None: wherever it does).
    """
    file = SegmentFile(path, use_direct=False, disk=disk)
    try:
        header = read_header(file)
        found = scan(file, header, seal)
        problems = [Problem(path.name, at, reason) for at, reason in found.problems]
        if end is not None and found.end < end:
            problems.append(Problem(path.name, found.end, f"records end {end - found.end} bytes early"))
        for _, entry, tables in found.records:
            problems += [Problem(path.name, at, why) for at, why in _check_record(file, entry, tables, seal)]
    except Malformed as reason:
        return [Problem(path.name, 0, str(reason))]
    except OSError as error:
        return [Problem(path.name, 0, f"cannot be read: {error.strerror}")]
    size = file.num_bytes
    if size % PAGE:
        problems.append(Problem(path.name, size, "the file does not end on a page"))
    return problems


def _check_record(file: SegmentFile, entry: Entry, tables: RecordTables, seal: Seal) -> list[tuple[int, str]]:
    problems = []
    for place, section in enumerate(tables.sections):
        data = file.read(section.num_bytes, entry.offset + section.offset)
        if tables.open_section(seal, place, data) is None:
            problems.append((entry.offset + section.offset, f"section {section.kind} is damaged"))
    layers, leaf_bytes, _ = tables.header.layout_shape
    for layer in range(layers):
        for leaf in range(entry.num_leaves):
            at = entry.offset + tables.kv_offset(layer, leaf)
            if tables.open_leaf(seal, layer, leaf, file.read(leaf_bytes, at)) is None:
                problems.append((at, f"leaf {leaf} of layer {layer} is damaged"))
    return problems
