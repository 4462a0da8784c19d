"""Reads a segment by docs/format.md alone: a second reader, so that a mistake of the first one shows.

Shares no code with the store's own reading (format, record, segment, sealing, crypt): not its structs, not its key
derivation. Reads every byte and opens every leaf; slow on purpose. Changes nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]  # (bytes, offset); fewer bytes only at the file's end
    FindKey = Callable[[bytes], tuple[bytes, bytes] | None]  # sequence id -> (secret, key id)

_PAGE = 4096
_SEGMENT = struct.Struct("<8sIIQQ16s16s32s4IQ")
_RECORD = struct.Struct("<4sHHQQQ16s5IHHQQQ16sQ")
_SECTION = struct.Struct("<IIQQ16s")
_FOOTER_ROW = struct.Struct("<QQII")
_FOOTER_END = struct.Struct("<QIIQQ8s")
_CUT = struct.Struct("<IIQ")
_TABLES, _FIRST_SECTION, _FIRST_PIECE = 2**64 - 1, 2**63, 2**63 + 2**32
_MAX_LEAVES, _MAX_SECTIONS, _MAX_LISTED = 4096, 64, 2**20


@dataclass(slots=True)
class RecordFound:
    """One record. `state`: good, damaged (its header or tables), damaged leaves, cut short or unreadable.

    `damaged_leaves`: (layer, leaf). `reason` is empty for a good one. `sections`: what is wrong with which: the
    leaves are good all the same, and what a section holds can be made from them.
    """

    offset: int
    num_bytes: int
    number: int
    num_leaves: int = 0
    state: str = "good"
    reason: str = ""
    damaged_leaves: list[tuple[int, int]] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)


@dataclass(slots=True)
class SegmentFound:
    """One segment. `state`: good, damaged, unsealed, unreadable (no key), foreign or newer.

    `end` is behind the last record that counts; `problems` are (offset, reason), `notes` too: of sections.
    """

    file: str
    num_bytes: int
    state: str = "good"
    reason: str = ""
    sequence_id: bytes = b""
    is_encrypted: bool = False
    is_sealed: bool = False
    end: int = _PAGE
    records: list[RecordFound] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)

    def fail(self, state: str, reason: str, offset: int = 0) -> SegmentFound:
        """The whole segment cannot be read, for a reason."""
        self.state, self.reason = state, reason
        self.problems.append((offset, reason))
        return self


@dataclass(frozen=True)
class _Segment:
    """What records are held against."""

    read: Read
    number: int
    random: int
    layers: int
    leaf_bytes: int
    dtype: int
    cipher: AESGCM | None  # None: not encrypted


class _Bad(Exception):
    """What is wrong with a record."""


def check_segment_bytes(name: str, num_bytes: int, read: Read, find_key: FindKey) -> SegmentFound:
    """Everything in a segment file of that name and size. Raises OSError."""
    found = SegmentFound(name, num_bytes)
    page = read(_PAGE, 0)
    if len(page) < _SEGMENT.size or page[:8] != b"EDGEKV\0S":
        return found.fail("foreign", "not a segment of edgekv")
    header = _SEGMENT.unpack_from(page)
    _, version, flags, number, random, key_id, sequence_id, _, layers, leaf_bytes, dtype, _, total = header
    if version != 2:
        return found.fail("newer", f"format {version}, this version reads 2")
    if total != xxhash.xxh3_64_intdigest(page[: _SEGMENT.size - 8]) or len(page) < _PAGE:
        return found.fail("damaged", "the segment header does not match its checksum")
    if flags & ~1:
        return found.fail("newer", f"flags {flags:#x}")
    found.sequence_id, found.is_encrypted = sequence_id, bool(flags & 1)
    if name != f"seg-{number:016x}-{random:016x}.kv":
        return found.fail("damaged", "its name and its header disagree")
    if not (0 < layers <= 4096 and 0 < leaf_bytes < 2**30):
        return found.fail("damaged", "the segment header has an impossible layout")
    cipher = None
    if found.is_encrypted:
        key = find_key(sequence_id)
        if key is None or key[1] != key_id:
            return found.fail("unreadable", "its key is not in keys.db")
        cipher = AESGCM(_derive(key[0], b"edgekv segment" + struct.pack("<QQ", number, random)))
    _check_records(_Segment(read, number, random, layers, leaf_bytes, dtype, cipher), found)
    return found


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=info).derive(secret)


def _check_records(segment: _Segment, found: SegmentFound) -> None:
    rows = _read_footer(segment, found.num_bytes)
    found.is_sealed = rows is not None
    if rows is None:
        _walk(segment, found)
    else:
        for number, row in enumerate(rows):
            found.records.append(_check_listed(segment, number, row))
            found.end = row[0] + row[1]
    for record in found.records:
        if record.state == "damaged leaves":
            found.problems += [
                (record.offset, f"leaf {leaf} of layer {layer} is damaged")
                for layer, leaf in record.damaged_leaves
            ]
        elif record.state != "good":
            found.problems.append((record.offset, record.reason))
        found.notes += [(record.offset, reason) for reason in record.sections]
    if found.num_bytes % _PAGE:
        found.problems.append((found.num_bytes, "the file does not end on a page"))
    if found.problems:
        found.state, found.reason = "damaged", found.problems[0][1]
    elif not found.is_sealed:
        found.state, found.reason = "unsealed", "a process is writing it, or was killed"


def _read_footer(segment: _Segment, num_bytes: int) -> list[tuple[int, int, int, int]] | None:
    """Its rows (offset, bytes, table bytes, leaves); None where there is no good footer."""
    tail = segment.read(_FOOTER_END.size, max(0, num_bytes - _FOOTER_END.size))
    if len(tail) < _FOOTER_END.size:
        return None
    offset, count, _, number, total, magic = _FOOTER_END.unpack(tail)
    if count > min(_MAX_LISTED, offset // (2 * _PAGE)):
        return None
    length = _pages(count * _FOOTER_ROW.size + _FOOTER_END.size)
    if magic != b"EDGEKV\0F" or number != segment.number or offset + length != num_bytes:
        return None
    footer = segment.read(length, offset)
    if len(footer) != length or total != xxhash.xxh3_64_intdigest(footer[:-16]):
        return None
    rows = [_FOOTER_ROW.unpack_from(footer, i * _FOOTER_ROW.size) for i in range(count)]
    at = _PAGE
    for row in rows:
        if row[0] != at:
            return None
        at += row[1]
    return rows if at == offset else None


def _check_listed(segment: _Segment, number: int, row: tuple[int, int, int, int]) -> RecordFound:
    """A record of a sealed segment: judged alone."""
    offset, num_bytes, table_bytes, leaves = row
    leaves = (
        leaves if leaves <= _MAX_LEAVES else 0
    )  # the footer's sum has no key: anybody could claim any number
    try:
        record, tables = _read_record(segment, number, offset)
    except _Bad as reason:
        return RecordFound(offset, num_bytes, number, leaves, "damaged", str(reason))
    if (record.num_bytes, tables.num_bytes, record.num_leaves) != (num_bytes, table_bytes, leaves):
        return RecordFound(offset, num_bytes, number, leaves, "damaged", "it is not what the footer says")
    tables.check_content(segment, record)
    return record


def _walk(segment: _Segment, found: SegmentFound) -> None:
    """Records of an unsealed segment: the first bad one ends it."""
    number = 0
    while found.end + _RECORD.size <= found.num_bytes:
        offset, rest = found.end, found.num_bytes - found.end
        try:
            record, tables = _read_record(segment, number, offset)
        except _Bad as reason:
            found.records.append(RecordFound(offset, rest, number, 0, "damaged", str(reason)))
            return
        if record.num_bytes > rest:
            record.state, record.reason, record.num_bytes = "cut short", "the last record is cut short", rest
            found.records.append(record)
            return
        tables.check_content(segment, record)
        found.records.append(record)
        found.end += record.num_bytes
        number += 1


class _Tables:
    """A record's opened tables."""

    def __init__(self, header: bytes, plain: bytes, kv_offset: int, leaves: int, sections: int) -> None:
        self.num_bytes = len(plain)
        self._context = header[:96]
        self._number: int = struct.unpack_from("<Q", header, 24)[0]
        self._kv_offset = kv_offset
        self._front_bytes = _pages(_RECORD.size + len(plain))
        self._leaves = leaves
        self._sections = [_SECTION.unpack_from(plain, i * _SECTION.size) for i in range(sections)]
        self._tags = plain[sections * _SECTION.size + leaves * (16 + 64) :]

    def check_content(self, segment: _Segment, record: RecordFound) -> None:
        """Opens every section and leaf, and says in `record` which do not open."""
        self._check_sections(segment, record)
        if record.state != "good":
            return
        stride = _pages(self._leaves * segment.leaf_bytes)
        for layer in range(segment.layers):
            run = segment.read(
                self._leaves * segment.leaf_bytes, record.offset + self._kv_offset + layer * stride
            )
            for leaf in range(self._leaves):
                index = layer * self._leaves + leaf
                sealed = run[leaf * segment.leaf_bytes : (leaf + 1) * segment.leaf_bytes]
                tag = self._tags[index * 16 : index * 16 + 16]
                is_whole = len(sealed) == segment.leaf_bytes
                if not is_whole or _open(segment, self._number, index, self._context, sealed, tag) is None:
                    record.damaged_leaves.append((layer, leaf))
        if record.damaged_leaves:
            record.state = "damaged leaves"
            record.reason = f"{len(record.damaged_leaves)} damaged leaves"

    def _check_sections(self, segment: _Segment, record: RecordFound) -> None:
        for place, (kind, flags, offset, num_bytes, last) in enumerate(self._sections):
            is_inside = (
                num_bytes <= record.num_bytes
                and self._front_bytes <= offset
                and offset + num_bytes <= self._kv_offset
            )
            data = segment.read(num_bytes, record.offset + offset) if is_inside else b""
            if not is_inside or len(data) != num_bytes:
                record.sections.append(f"section {kind} is damaged")
            elif flags & ~3 or flags == 2:
                record.sections.append(
                    f"section {kind} has flags {flags:#x}, which this version does not know"
                )
            elif not flags:
                if _open(segment, self._number, _FIRST_SECTION + place, self._context, data, last) is None:
                    record.sections.append(f"section {kind} is damaged")
            elif reason := self._check_cut(data, last, by_leaf=bool(flags & 2)):
                record.state, record.reason = "damaged", f"section {kind} {reason}"
            elif reason := self._check_pieces(segment, place, data, last):
                record.sections.append(f"section {kind} {reason}")

    def _check_cut(self, data: bytes, cut: bytes, *, by_leaf: bool) -> str | None:
        """Why tables with such a section cannot be right."""
        piece_bytes, zero, run_bytes = _CUT.unpack(cut)
        if not piece_bytes or not run_bytes or zero or (by_leaf and run_bytes % self._leaves):
            return "is cut in an impossible way"
        if not data or len(data) % (run_bytes + -(-run_bytes // piece_bytes) * 16):
            return "does not hold whole runs of pieces"
        return None

    def _check_pieces(self, segment: _Segment, place: int, data: bytes, cut: bytes) -> str | None:
        """Opens every piece; what is wrong with the section."""
        piece_bytes, _, run_bytes = _CUT.unpack(cut)
        at, number, bad = 0, 0, 0
        while at < len(data):
            left = run_bytes
            while left:
                size = min(left, piece_bytes)
                sealed, tag = data[at : at + size], data[at + size : at + size + 16]
                index = _FIRST_PIECE + place * 2**32 + number
                bad += _open(segment, self._number, index, self._context, sealed, tag) is None
                at, number, left = at + size + 16, number + 1, left - size
        return f"has {bad} damaged pieces of {number}" if bad else None


def _read_record(segment: _Segment, number: int, offset: int) -> tuple[RecordFound, _Tables]:
    """A record's header and tables. Raises _Bad."""
    header = segment.read(_RECORD.size, offset)
    if len(header) < _RECORD.size or header[:4] != b"EKVR":
        raise _Bad("no record starts here")
    fields = _RECORD.unpack(header)
    _, version, flags, owner, random, found, _, leaves, layers, leaf_bytes, dtype, _ = fields[:12]
    tag_bytes, sections, table_bytes, kv_offset, num_bytes, tag, total = fields[12:]
    if total != xxhash.xxh3_64_intdigest(header[:-8]):
        raise _Bad("the record header does not match its checksum")
    if (version, flags, tag_bytes) != (2, 0, 16):
        raise _Bad(f"a record of version {version}, this one reads 2")
    if (owner, random, found) != (segment.number, segment.random, number):
        raise _Bad("the record belongs to another place")
    if (layers, leaf_bytes, dtype) != (segment.layers, segment.leaf_bytes, segment.dtype):
        raise _Bad("the record's layout is not its segment's")
    if not 0 < leaves <= _MAX_LEAVES or sections > _MAX_SECTIONS:
        raise _Bad("the record header has impossible counts")
    expected = sections * _SECTION.size + leaves * (16 + 64 + 16 * layers)
    stride = _pages(leaves * leaf_bytes)
    if table_bytes != expected or num_bytes != kv_offset + layers * stride or kv_offset % _PAGE:
        raise _Bad("the record header has impossible lengths")
    sealed = segment.read(table_bytes, offset + _RECORD.size)
    plain = _open(segment, number, _TABLES, header[:96], sealed, tag) if len(sealed) == table_bytes else None
    if plain is None:
        raise _Bad("the record tables do not match their tag")
    record = RecordFound(offset, num_bytes, number, leaves)
    return record, _Tables(header, plain, kv_offset, leaves, sections)


def _open(
    segment: _Segment, number: int, index: int, context: bytes, sealed: bytes, tag: bytes
) -> bytes | None:
    """The plain bytes of a piece, None where its tag does not fit."""
    if segment.cipher is None:
        return sealed if xxhash.xxh3_128_digest(sealed) == tag else None
    try:
        return segment.cipher.decrypt(struct.pack("<IQ", number, index), sealed + tag, context)
    except InvalidTag:
        return None


def _pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE
