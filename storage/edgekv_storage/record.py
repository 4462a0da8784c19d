"""One extent in its checksummed form: built from leaves for writing, parsed from bytes when read back.

Knows the format and checksums; opens no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from edgekv_storage.format import (
    IDS_BYTES,
    KEY_BYTES,
    LEAF_TOKENS,
    MAX_LEAVES,
    MAX_SECTIONS,
    NO_PARENT,
    PAGE,
    RECORD_BYTES,
    SECTION_ENTRY_BYTES,
    TAG_BYTES,
    Entry,
    Malformed,
    RecordHeader,
    Section,
    SegmentHeader,
    round_up,
    unpack_sections,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edgekv_storage.files import Buffer

_ZEROS = bytes(PAGE)


@dataclass(frozen=True, slots=True)
class Extent:
    """What one append hands over. `payload`: buffers whose concatenation is layer by layer, leaf by leaf."""

    keys: Sequence[bytes]
    parent: bytes | None
    token_ids: NDArray[np.int32]  # [leaves * 16]
    payload: Sequence[Buffer]
    provenance: int
    sections: Mapping[int, Buffer]


class RecordTables:
    """A record's verified header and tables: what is needed to find, compare and verify its leaves."""

    __slots__ = ("header", "keys", "sections", "tags", "token_ids")

    def __init__(self, header: RecordHeader, tables: bytes) -> None:
        """`tables` are the header's `table_bytes` bytes behind it. Raises Malformed."""
        if len(tables) != header.table_bytes or xxhash.xxh3_128_digest(tables) != header.table_tag:
            raise Malformed("record tables do not match their checksum")
        self.header = header
        count = header.num_leaves
        at = header.num_sections * SECTION_ENTRY_BYTES
        self.sections = unpack_sections(tables, header.num_sections)
        self.keys = [tables[at + i * KEY_BYTES : at + (i + 1) * KEY_BYTES] for i in range(count)]
        at += count * KEY_BYTES
        self.token_ids = np.frombuffer(tables, "<i4", count * LEAF_TOKENS, at).reshape(count, LEAF_TOKENS)
        self.tags = tables[at + count * IDS_BYTES :]

    def tags_of(self, layer: int, first: int, count: int) -> bytes:
        """Tags of `count` adjacent leaves of one layer, concatenated."""
        at = (layer * self.header.num_leaves + first) * TAG_BYTES
        return self.tags[at : at + count * TAG_BYTES]

    def kv_offset(self, layer: int, leaf: int) -> int:
        """Bytes from the record's start to a leaf."""
        header = self.header
        return header.kv_offset + layer * header.layer_stride + leaf * header.layout_shape[1]

    def section(self, kind: int) -> Section | None:
        """The entry of a section, None where the record has no such section."""
        return next((s for s in self.sections if s.kind == kind), None)

    def entry(self, offset: int) -> Entry:
        """This record at `offset` of its segment."""
        header = self.header
        return Entry(offset, header.record_bytes, header.table_bytes, header.num_leaves)


def parse_tables(data: bytes, segment: SegmentHeader, number: int) -> RecordTables:
    """Tables of record `number` of `segment` from its first bytes. Raises Malformed."""
    header = RecordHeader.unpack(data)
    if (header.segment, header.random, header.number) != (segment.segment, segment.random, number):
        raise Malformed("the record belongs to another place")
    layout = segment.layout
    if header.layout_shape != (layout.num_layers, layout.leaf_bytes, layout.dtype):
        raise Malformed("the record's layout is not its segment's")
    return RecordTables(header, data[RECORD_BYTES : RECORD_BYTES + header.table_bytes])


def build_record(extent: Extent, segment: SegmentHeader, number: int) -> tuple[RecordTables, list[Buffer]]:
    """The record's tables and its bytes as a list of buffers; KV is not copied. Raises ValueError."""
    _validate(extent, segment)
    layout = segment.layout
    count = len(extent.keys)
    tags = b"".join(leaf_digests(extent.payload, layout.leaf_bytes))
    head = RECORD_BYTES + len(extent.sections) * SECTION_ENTRY_BYTES
    head += count * (KEY_BYTES + IDS_BYTES) + len(tags)
    sections, region = _place_sections(extent.sections, round_up(head))
    ids = np.ascontiguousarray(extent.token_ids, dtype="<i4").tobytes()
    tables = b"".join([s.pack() for s in sections] + list(extent.keys)) + ids + tags
    header = RecordHeader(
        segment.segment,
        segment.random,
        number,
        extent.parent or NO_PARENT,
        count,
        (layout.num_layers, layout.leaf_bytes, layout.dtype),
        extent.provenance,
        len(sections),
        round_up(head) + sum(len(r) for r in region),
        xxhash.xxh3_128_digest(tables),
    )
    front = (header.pack() + tables).ljust(round_up(head), b"\0")
    runs = _padded_runs(extent.payload, count * layout.leaf_bytes)
    return RecordTables(header, tables), [front, *region, *runs]


def leaf_digests(payload: Sequence[Buffer], leaf_bytes: int) -> Iterator[bytes]:
    """One xxh3-128 per `leaf_bytes` of the concatenated payload, without concatenating it."""
    hasher, missing = xxhash.xxh3_128(), leaf_bytes
    for buffer in payload:
        view = memoryview(buffer).cast("B")
        at = 0
        while at < len(view):
            if missing == leaf_bytes and at + leaf_bytes <= len(view):  # a whole leaf lies in this buffer
                yield xxhash.xxh3_128_digest(view[at : at + leaf_bytes])
                at += leaf_bytes
                continue
            part = view[at : at + missing]
            hasher.update(part)
            at += len(part)
            missing -= len(part)
            if missing == 0:
                yield hasher.digest()
                hasher, missing = xxhash.xxh3_128(), leaf_bytes


def _validate(extent: Extent, segment: SegmentHeader) -> None:
    layout, count = segment.layout, len(extent.keys)
    if not 0 < count <= MAX_LEAVES or any(len(k) != KEY_BYTES for k in extent.keys):
        raise ValueError(
            f"a record holds 1 to {MAX_LEAVES} leaves with keys of {KEY_BYTES} bytes, not {count}"
        )
    if extent.parent is not None and len(extent.parent) != KEY_BYTES:
        raise ValueError(f"a parent key has {KEY_BYTES} bytes")
    if len(extent.token_ids) != count * LEAF_TOKENS:
        raise ValueError(f"{count} leaves need {count * LEAF_TOKENS} token ids, not {len(extent.token_ids)}")
    given = sum(memoryview(b).nbytes for b in extent.payload)
    if given != count * layout.num_layers * layout.leaf_bytes:
        raise ValueError(f"{count} leaves in {layout.num_layers} layers are not {given} bytes")
    if len(extent.sections) > MAX_SECTIONS:
        raise ValueError(f"a record has at most {MAX_SECTIONS} sections")


def _place_sections(sections: Mapping[int, Buffer], start: int) -> tuple[list[Section], list[Buffer]]:
    placed: list[Section] = []
    region: list[Buffer] = []
    for kind, data in sorted(sections.items()):
        body = bytes(data)
        placed.append(Section(kind, start, len(body), xxhash.xxh3_128_digest(body)))
        region.append(body.ljust(round_up(len(body)), b"\0"))
        start += round_up(len(body))
    return placed, region


def _padded_runs(payload: Sequence[Buffer], run_bytes: int) -> Iterator[Buffer]:
    """The payload, each layer's run padded to whole pages."""
    pad = _ZEROS[: round_up(run_bytes) - run_bytes]
    if not pad:
        yield from payload
        return
    missing = run_bytes
    for buffer in payload:
        view = memoryview(buffer).cast("B")
        while len(view):
            part, view = view[:missing], view[missing:]
            yield part
            missing -= len(part)
            if missing == 0:
                yield pad
                missing = run_bytes
