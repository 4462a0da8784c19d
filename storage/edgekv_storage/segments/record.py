"""One extent in the form it has on disk: taken apart into pieces, sealed, put together; and its tables opened.

Knows the format and that pieces are sealed; neither keys nor files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekv_storage.crypt import TAG_BYTES, PlainSeal, open_bytes, seal_bytes
from edgekv_storage.segments.format import (
    IDS_BYTES,
    KEY_BYTES,
    LEAF_TOKENS,
    MAX_LEAVES,
    MAX_SECTION_BYTES,
    MAX_SECTIONS,
    NO_PARENT,
    PAGE,
    RECORD_BYTES,
    SECTION_ENTRY_BYTES,
    TABLES_INDEX,
    Entry,
    Malformed,
    RecordHeader,
    SegmentHeader,
    round_up,
)
from edgekv_storage.segments.sections import Pieces, seal_section, section_bytes, unpack_sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edgekv_storage.crypt import Seal
    from edgekv_storage.files import Buffer
    from edgekv_storage.segments.sections import Section

_ZEROS = bytes(PAGE)


@dataclass(frozen=True, slots=True)
class Extent:
    """What one append hands over. `payload`: buffers whose concatenation is layer by layer, leaf by leaf."""

    keys: Sequence[bytes]
    parent: bytes | None
    token_ids: NDArray[np.int32]  # [leaves * 16]
    payload: Sequence[Buffer]
    provenance: int
    sections: Mapping[int, Buffer | Pieces]


class RecordTables:
    """A record's verified header and tables: what is needed to find, compare and verify its leaves."""

    __slots__ = ("context", "header", "keys", "sections", "tags", "token_ids")

    def __init__(self, header: RecordHeader, tables: bytes) -> None:
        """`tables`: opened, the header's `table_bytes` long. Raises Malformed."""
        self.header = header
        self.context = header.context
        count = header.num_leaves
        at = header.num_sections * SECTION_ENTRY_BYTES
        self.sections = unpack_sections(tables, header.num_sections)
        if any(not header.front_bytes <= s.offset <= header.kv_offset - s.num_bytes for s in self.sections):
            raise Malformed("a section lies outside of its record")
        if any(s.is_by_leaf and s.cut.run_bytes % count for s in self.sections):
            raise Malformed("a section by leaf that does not hold equally much for each")
        self.keys = [tables[at + i * KEY_BYTES : at + (i + 1) * KEY_BYTES] for i in range(count)]
        at += count * KEY_BYTES
        self.token_ids = np.frombuffer(tables, "<i4", count * LEAF_TOKENS, at).reshape(count, LEAF_TOKENS)
        self.tags = tables[at + count * IDS_BYTES :]

    def leaf_index(self, layer: int, leaf: int) -> int:
        """What names a leaf among the record's pieces; the next leaf's is one higher."""
        return layer * self.header.num_leaves + leaf

    def tags_of(self, layer: int, first: int, count: int) -> bytes:
        """Tags of `count` adjacent leaves of one layer, concatenated."""
        at = self.leaf_index(layer, first) * TAG_BYTES
        return self.tags[at : at + count * TAG_BYTES]

    def kv_offset(self, layer: int, leaf: int) -> int:
        """Bytes from the record's start to a leaf."""
        header = self.header
        return header.kv_offset + layer * header.layer_stride + leaf * header.layout_shape[1]

    def section(self, kind: int) -> Section | None:
        """None where the record has no such section."""
        return next((s for s in self.sections if s.kind == kind), None)

    def open_leaf(self, seal: Seal, layer: int, leaf: int, sealed: bytes) -> bytes | None:
        """One leaf in one layer; None where it is damaged. For those who do not read by Transfer."""
        if len(sealed) != self.header.layout_shape[1]:
            return None
        index, tag = self.leaf_index(layer, leaf), self.tags_of(layer, leaf, 1)
        return open_bytes(seal, self.header.number, index, self.context, sealed, tag)

    def entry(self, offset: int) -> Entry:
        """This record at `offset` of its segment."""
        header = self.header
        return Entry(offset, header.record_bytes, header.table_bytes, header.num_leaves)


def parse_header(data: bytes, segment: SegmentHeader, number: int) -> RecordHeader:
    """Header of record `number` of `segment`; not to be believed before its tables open. Raises Malformed."""
    header = RecordHeader.unpack(data)
    if (header.segment, header.random, header.number) != (segment.segment, segment.random, number):
        raise Malformed("the record belongs to another place")
    layout = segment.layout
    if header.layout_shape != (layout.num_layers, layout.leaf_bytes, layout.dtype):
        raise Malformed("the record's layout is not its segment's")
    return header


def parse_tables(data: bytes, segment: SegmentHeader, number: int, seal: Seal) -> RecordTables:
    """Tables of record `number` of `segment` from its first bytes. Raises Malformed."""
    header = parse_header(data, segment, number)
    sealed = data[RECORD_BYTES : RECORD_BYTES + header.table_bytes]
    if len(sealed) != header.table_bytes:
        raise Malformed("record tables are cut short")
    tables = open_bytes(seal, number, TABLES_INDEX, header.context, sealed, header.table_tag)
    if tables is None:
        raise Malformed("record tables do not match their tag")
    return RecordTables(header, tables)


class RecordBuilder:
    """Seals one extent piece by piece; each piece once, so that no nonce is used twice."""

    def __init__(self, extent: Extent, segment: SegmentHeader, number: int, seal: Seal) -> None:
        """Raises ValueError for what is no record, before anything is sealed."""
        _validate(extent, segment)
        layout, count = segment.layout, len(extent.keys)
        shape = (layout.num_layers, layout.leaf_bytes, layout.dtype)
        parent = extent.parent or NO_PARENT
        header = RecordHeader(
            segment.segment,
            segment.random,
            number,
            parent,
            count,
            shape,
            extent.provenance,
            len(extent.sections),
            kv_offset=0,
        )
        sizes = sum(map(section_bytes, extent.sections.values()))
        self.header = replace(header, kv_offset=header.front_bytes + round_up(sizes))
        self.tables: RecordTables | None = None  # known when all pieces were taken
        self._extent = extent
        self._seal = seal
        self._context = self.header.context

    def entry(self, offset: int) -> Entry:
        """The record at `offset` of its segment."""
        header = self.header
        return Entry(offset, header.record_bytes, header.table_bytes, header.num_leaves)

    def pieces(self, scratch: memoryview) -> Iterator[tuple[int, list[Buffer]]]:
        """(offset in the record, buffers to write there), to be written before the next is asked for.

        Encrypted leaves go through `scratch`, which holds a leaf, a page and a tag at least; plain ones are
        not copied. What makes the record findable comes last.
        """
        tags: list[bytes] = []
        if not self._seal.is_encrypted:
            tags += [PlainSeal.tag(leaf) for leaf in self._leaves()]
            yield self.header.kv_offset, list(self._padded_runs())
        else:
            yield from self._sealed_leaves(scratch, tags)
        sections, region = self._sealed_sections()
        ids = np.ascontiguousarray(self._extent.token_ids, dtype="<i4").tobytes()
        tables = b"".join([*(s.pack() for s in sections), *self._extent.keys, ids, *tags])
        number = self.header.number
        sealed, table_tag = seal_bytes(self._seal, number, TABLES_INDEX, self._context, tables)
        header = replace(self.header, table_tag=table_tag)
        front = (header.pack() + sealed).ljust(header.front_bytes, b"\0")
        yield 0, [front, *region]
        self.tables = RecordTables(header, tables)

    def _leaves(self) -> Iterator[memoryview]:
        """The payload leaf by leaf; copied only where a leaf spans buffers."""
        size = self.header.layout_shape[1]
        rest: list[memoryview] = []
        missing = size
        for buffer in self._extent.payload:
            view = memoryview(buffer).cast("B")
            at = 0
            while at < len(view):
                part = view[at : at + missing]
                at += len(part)
                missing -= len(part)
                if missing:
                    rest.append(part)
                    continue
                yield memoryview(b"".join([*rest, part])) if rest else part
                rest.clear()
                missing = size

    def _padded_runs(self) -> Iterator[Buffer]:
        """The payload, each layer's run padded to whole pages."""
        run_bytes = self.header.num_leaves * self.header.layout_shape[1]
        pad = _ZEROS[: self.header.layer_stride - run_bytes]
        if not pad:
            yield from self._extent.payload
            return
        missing = run_bytes
        for buffer in self._extent.payload:
            view = memoryview(buffer).cast("B")
            while len(view):
                part, view = view[:missing], view[missing:]
                yield part
                missing -= len(part)
                if missing == 0:
                    yield pad
                    missing = run_bytes

    def _sealed_leaves(self, scratch: memoryview, tags: list[bytes]) -> Iterator[tuple[int, list[Buffer]]]:
        """Each leaf's tag lands behind it, where the next leaf or the padding then overwrites it."""
        header, seal_into = self.header, self._seal.seal_into
        size, count, number = header.layout_shape[1], header.num_leaves, header.number
        pad = header.layer_stride - count * size
        start, at = header.kv_offset, 0
        for index, leaf in enumerate(self._leaves()):
            if at + size + pad + TAG_BYTES > len(scratch):
                yield start, [scratch[:at]]
                start, at = start + at, 0
            tags.append(seal_into(number, index, self._context, leaf, scratch[at : at + size + TAG_BYTES]))
            at += size
            if pad and (index + 1) % count == 0:
                scratch[at : at + pad] = _ZEROS[:pad]
                at += pad
        yield start, [scratch[:at]]

    def _sealed_sections(self) -> tuple[list[Section], list[Buffer]]:
        """Entries and bytes of the sections, one right behind the other: a page for each would cost short turns."""
        header = self.header
        placed: list[Section] = []
        region: list[Buffer] = []
        at = header.front_bytes
        for place, (kind, data) in enumerate(sorted(self._extent.sections.items())):
            section, sealed = seal_section(self._seal, header.number, self._context, place, kind, at, data)
            placed.append(section)
            region.append(sealed)
            at += section.num_bytes
        region.append(_ZEROS[: header.kv_offset - at])
        return placed, region


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
    if len(extent.sections) > MAX_SECTIONS or any(not 0 <= kind < 1 << 32 for kind in extent.sections):
        raise ValueError(f"a record has at most {MAX_SECTIONS} sections, their kinds in 32 bits")
    for data in extent.sections.values():
        if section_bytes(data) > MAX_SECTION_BYTES:
            raise ValueError(f"a section holds at most {MAX_SECTION_BYTES} bytes, tags included")
        if isinstance(data, Pieces) and data.is_by_leaf and data.cut.run_bytes % count:
            raise ValueError(f"a section by leaf does not hold equally much for each of {count} leaves")
