"""Byte layout of segment files: numbers and offsets only, no I/O. docs/format.md is this file in prose.

All integers are little-endian. Every structure carries its own checksum, so a reader needs no trust in the
place it was told to look at. Knows nothing of files, keys' meaning or tensors.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from edgekv_storage.crypt import NO_KEY_ID, TAG_BYTES

PAGE = 4096  # alignment unit of direct I/O
LEAF_TOKENS = 16
KEY_BYTES = 16
IDS_BYTES = 4 * LEAF_TOKENS
FORMAT = 2
ENCRYPTED = 1  # flag of a segment
NO_PARENT = bytes(KEY_BYTES)
MAX_LEAVES = 4096  # of one record; keeps a hostile header from asking for a huge tag table
MAX_LAYERS = 4096
MAX_SECTIONS = 64
MAX_SEGMENTS = 1 << 62  # numbers of segments are below it: SQLite's integers have a sign
MAX_LISTED = 1 << 20  # records of a footer that is read; each takes two pages at least
MAX_RECORDS = 1 << 32  # of one segment: the number's share of a nonce
TABLES_INDEX = (1 << 64) - 1  # names the tables among a record's encrypted pieces; leaves count from 0
SECTION_INDEX = 1 << 63  # and sections from here
SECTION_PIECE_INDEX = SECTION_INDEX + (1 << 32)  # and their pieces from here, 2^32 for each section
SECTION_CUT = 1  # flags of a section: in pieces, each with its tag behind it
SECTION_BY_LEAF = 2  # and equally many bytes of each run are each leaf's
MAX_PIECES = 1 << 24  # of one section
MAX_SECTION_BYTES = 1 << 30  # keeps a hostile table from asking for any amount of memory
CONTEXT_BYTES = 96  # of a record's header: all but the tag of its tables and the checksum

SEGMENT_MAGIC = b"EDGEKV\x00S"
RECORD_MAGIC = b"EKVR"
FOOTER_MAGIC = b"EDGEKV\x00F"

#   0      8       12     16       24      32      48        64           96      100     104    108   112
#   |magic |format |flags |segment |random |key id |sequence |fingerprint |layers |leaf |dtype |zero |xxh3-64
_SEGMENT = struct.Struct("<8sIIQQ16s16s32sIIII")
#   0      4    6     8        16      24      32          48      52      56     60
#   |magic |ver |flags|segment |random |number |parent key |leaves |layers |leaf B|dtype|
#   64          68    70        72          80         88            96        112
#   |provenance |tag B|sections |table bytes|KV offset |record bytes |table tag |xxh3-64
_RECORD = struct.Struct("<4sHHQQQ16sIIIIIHHQQQ16s")
#   0     4      8        16     24
#   |kind |flags |offset  |bytes |tag, or how it is cut |
SECTION = struct.Struct("<IIQQ16s")
#   0            4     8
#   |piece bytes |zero |run bytes |
CUT = struct.Struct("<IIQ")
#   0       8            16           20
#   |offset |record bytes|table bytes |leaves |
_ENTRY = struct.Struct("<QQII")
#   0              8        12     16       24                32
#   |footer offset |records |flags |segment |xxh3-64 of all   |magic |
_TAIL = struct.Struct("<QIIQ")
_CHECK = struct.Struct("<Q")

SEGMENT_BYTES = _SEGMENT.size + _CHECK.size
RECORD_BYTES = _RECORD.size + _CHECK.size
TAIL_BYTES = _TAIL.size + _CHECK.size + len(FOOTER_MAGIC)


class Malformed(ValueError):
    """Bytes that are not what they should be; the text is the reason, for `check` and for quarantine."""


class Newer(Malformed):
    """Well-formed, but of a format this version does not know."""


def round_up(num_bytes: int, unit: int = PAGE) -> int:
    """Smallest multiple of `unit` that holds `num_bytes`."""
    return -(-num_bytes // unit) * unit


def _sealed(body: bytes) -> bytes:
    return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body))


def _unsealed(data: bytes | memoryview, size: int, what: str) -> bytes:
    body = bytes(data[:size])
    if len(data) < size + _CHECK.size:
        raise Malformed(f"{what} is cut short")
    if _CHECK.unpack_from(data, size)[0] != xxhash.xxh3_64_intdigest(body):
        raise Malformed(f"{what} does not match its checksum")
    return body


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape of every leaf of one model: `leaf_bytes` is one leaf in one layer (K then V)."""

    num_layers: int
    leaf_bytes: int
    dtype: int
    fingerprint: bytes  # 32 bytes: weights, tokenizer, rope, KV dtype, layout version

    def __post_init__(self) -> None:
        if not (0 < self.num_layers <= MAX_LAYERS and 0 < self.leaf_bytes < 1 << 30):
            raise ValueError(f"no such layout: {self.num_layers} layers of {self.leaf_bytes} bytes")
        if len(self.fingerprint) != 32:
            raise ValueError(f"a fingerprint has 32 bytes, not {len(self.fingerprint)}")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """First page of a segment. `key_id` names the conversation's key, zero: not encrypted."""

    segment: int
    random: int
    sequence_id: bytes
    layout: Layout
    key_id: bytes = NO_KEY_ID

    @property
    def is_encrypted(self) -> bool:
        """Whether its records can be read only with the conversation's key."""
        return self.key_id != NO_KEY_ID

    def pack(self) -> bytes:
        """One page."""
        body = _SEGMENT.pack(
            SEGMENT_MAGIC,
            FORMAT,
            ENCRYPTED if self.is_encrypted else 0,
            self.segment,
            self.random,
            self.key_id,
            self.sequence_id,
            self.layout.fingerprint,
            self.layout.num_layers,
            self.layout.leaf_bytes,
            self.layout.dtype,
            0,
        )
        return _sealed(body).ljust(PAGE, b"\0")

    @classmethod
    def unpack(cls, page: bytes) -> SegmentHeader:
        """Raises Malformed (not ours, damaged) or Newer."""
        if page[: len(SEGMENT_MAGIC)] != SEGMENT_MAGIC:
            raise Malformed("not a segment of edgekv")
        if len(page) >= 16:
            found, flags = struct.unpack_from("<II", page, 8)
            if found != FORMAT or flags & ~ENCRYPTED:
                raise Newer(f"segment format {found}, flags {flags:#x}; this version reads {FORMAT}")
        body = _unsealed(page, _SEGMENT.size, "segment header")
        _, _, flags, segment, random, key_id, sequence_id, fingerprint, layers, leaf, dtype, _ = (
            _SEGMENT.unpack(body)
        )
        try:
            layout = Layout(layers, leaf, dtype, fingerprint)
        except ValueError as error:
            raise Malformed(str(error)) from error
        if segment >= MAX_SEGMENTS:
            raise Malformed("a segment number that nobody reaches")
        if flags != (ENCRYPTED if key_id != NO_KEY_ID else 0):
            raise Malformed("segment header with a key id and no encryption, or the reverse")
        return cls(segment, random, sequence_id, layout, key_id)


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """Start of a record: who it is, how many leaves, and where everything lies within it.

    The tables that follow (sections, keys, token ids, tags) are `table_bytes` long, header not counted; they
    are one encrypted piece, and `table_tag` is its tag.
    """

    segment: int
    random: int
    number: int
    parent: bytes
    num_leaves: int
    layout_shape: tuple[int, int, int]  # layers, leaf bytes, dtype
    provenance: int
    num_sections: int
    kv_offset: int
    table_tag: bytes = bytes(TAG_BYTES)

    @property
    def context(self) -> bytes:
        """What is bound to every encrypted piece: the header but for the tag and the checksum."""
        return self.pack()[:CONTEXT_BYTES]

    @property
    def front_bytes(self) -> int:
        """Header and tables, padded to whole pages."""
        return round_up(RECORD_BYTES + self.table_bytes)

    @property
    def table_bytes(self) -> int:
        """Bytes of the four tables."""
        layers = self.layout_shape[0]
        per_leaf = KEY_BYTES + IDS_BYTES + layers * TAG_BYTES
        return self.num_sections * SECTION.size + self.num_leaves * per_leaf

    @property
    def layer_stride(self) -> int:
        """Bytes from one layer's run to the next: whole pages."""
        return round_up(self.num_leaves * self.layout_shape[1])

    @property
    def record_bytes(self) -> int:
        """Whole record, padding included."""
        return self.kv_offset + self.layout_shape[0] * self.layer_stride

    def pack(self) -> bytes:
        """RECORD_BYTES bytes."""
        layers, leaf_bytes, dtype = self.layout_shape
        return _sealed(
            _RECORD.pack(
                RECORD_MAGIC,
                FORMAT,
                0,
                self.segment,
                self.random,
                self.number,
                self.parent,
                self.num_leaves,
                layers,
                leaf_bytes,
                dtype,
                self.provenance,
                TAG_BYTES,
                self.num_sections,
                self.table_bytes,
                self.kv_offset,
                self.record_bytes,
                self.table_tag,
            )
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> RecordHeader:
        """Raises Malformed for anything that this version did not write."""
        if bytes(data[:4]) != RECORD_MAGIC:
            raise Malformed("no record starts here")
        fields = _RECORD.unpack(_unsealed(data, _RECORD.size, "record header"))
        _, version, flags, segment, random, number, parent, leaves, layers, leaf_bytes, dtype = fields[:11]
        provenance, tag_bytes, sections, table_bytes, kv_offset, record_bytes, table_tag = fields[11:]
        if (version, flags, tag_bytes) != (FORMAT, 0, TAG_BYTES):
            raise Newer(f"record version {version}, flags {flags:#x}, tags of {tag_bytes} bytes")
        if not (0 < leaves <= MAX_LEAVES and 0 < layers <= MAX_LAYERS and sections <= MAX_SECTIONS):
            raise Malformed("record header with impossible counts")
        header = cls(
            segment,
            random,
            number,
            parent,
            leaves,
            (layers, leaf_bytes, dtype),
            provenance,
            sections,
            kv_offset,
            table_tag,
        )
        lengths = (header.table_bytes, header.record_bytes)
        if (table_bytes, record_bytes) != lengths or kv_offset % PAGE or kv_offset < header.front_bytes:
            raise Malformed("record header with impossible lengths")
        return header


SECTION_ENTRY_BYTES = SECTION.size


def max_table_bytes(layout: Layout, num_leaves: int) -> int:
    """Most that the four tables of so many leaves can take."""
    return MAX_SECTIONS * SECTION.size + num_leaves * (KEY_BYTES + IDS_BYTES + layout.num_layers * TAG_BYTES)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one record lies: a row of the footer and of the index."""

    offset: int
    record_bytes: int
    table_bytes: int
    num_leaves: int


def footer_bytes(num_records: int) -> int:
    """Size of a footer, whole pages."""
    return round_up(num_records * _ENTRY.size + TAIL_BYTES)


def pack_footer(segment: int, offset: int, entries: list[Entry]) -> bytes:
    """Footer that starts at `offset`; its tail is the last bytes of the file."""
    rows = b"".join(_ENTRY.pack(e.offset, e.record_bytes, e.table_bytes, e.num_leaves) for e in entries)
    tail = _TAIL.pack(offset, len(entries), 0, segment)
    body = rows.ljust(footer_bytes(len(entries)) - TAIL_BYTES, b"\0") + tail
    return _sealed(body) + FOOTER_MAGIC


def footer_place(tail: bytes, file_bytes: int) -> tuple[int, int] | None:
    """(offset, bytes) of the footer whose last TAIL_BYTES are given, None where there is no footer."""
    if len(tail) != TAIL_BYTES or not tail.endswith(FOOTER_MAGIC):
        return None
    offset, count, _, _ = _TAIL.unpack_from(tail)
    if count > min(MAX_LISTED, offset // (2 * PAGE)):  # planted: nobody reads gigabytes of footer for it
        return None
    num_bytes = footer_bytes(count)
    return (offset, num_bytes) if offset % PAGE == 0 and offset + num_bytes == file_bytes else None


def unpack_footer(data: bytes, segment: int) -> list[Entry]:
    """The records of a sealed segment. Raises Malformed."""
    body = _unsealed(data, len(data) - _CHECK.size - len(FOOTER_MAGIC), "footer")
    _, count, _, found = _TAIL.unpack_from(body, len(body) - _TAIL.size)
    if found != segment or footer_bytes(count) != len(data):
        raise Malformed("the footer belongs to another segment")
    return [Entry(*_ENTRY.unpack_from(body, i * _ENTRY.size)) for i in range(count)]
