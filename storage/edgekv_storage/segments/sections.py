"""Sections of a record: small typed regions in front of its KV, whole or cut into pieces that open alone.

Knows how a section is cut, sealed and found among a record's bytes; not what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from edgekv_storage.crypt import TAG_BYTES, open_bytes, seal_bytes
from edgekv_storage.segments.format import (
    CUT,
    MAX_PIECES,
    MAX_SECTION_BYTES,
    SECTION,
    SECTION_BY_LEAF,
    SECTION_CUT,
    SECTION_INDEX,
    SECTION_PIECE_INDEX,
    Malformed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekv_storage.crypt import Seal
    from edgekv_storage.files import Buffer


@dataclass(frozen=True, slots=True)
class Cut:
    """How a section is cut: equal runs of `run_bytes`, each into pieces of `piece_bytes`, its last one shorter.

    Pieces are counted through all runs. All sizes are those of the plain bytes.
    """

    num_runs: int
    run_bytes: int
    piece_bytes: int

    @property
    def pieces_per_run(self) -> int:
        """Piece `i` of run `r` is piece r * pieces_per_run + i of the section."""
        return max(1, -(-self.run_bytes // self.piece_bytes))

    @property
    def num_pieces(self) -> int:
        """In all runs."""
        return self.num_runs * self.pieces_per_run

    @property
    def num_bytes(self) -> int:
        """Of the whole section."""
        return self.num_runs * self.run_bytes

    def start(self, piece: int) -> int:
        """Bytes in front of a piece; of the piece behind the last one: all."""
        run, inside = divmod(piece, self.pieces_per_run)
        return run * self.run_bytes + inside * self.piece_bytes

    def size(self, first: int, count: int = 1) -> int:
        """Bytes of `count` adjacent pieces."""
        return self.start(first + count) - self.start(first)

    def sizes(self, first: int, count: int) -> Iterator[int]:
        """Bytes of each of `count` adjacent pieces: the way to go through thousands of them."""
        per_run, size = self.pieces_per_run, self.piece_bytes
        last = self.run_bytes - (per_run - 1) * size
        return (last if (piece + 1) % per_run == 0 else size for piece in range(first, first + count))


@dataclass(frozen=True, slots=True)
class Pieces:
    """A section to be written in pieces: `data` is run after run, each run cut for itself.

    `is_by_leaf`: every run holds equally many bytes for each leaf of the record, in their order, so that a copy
    of some of the leaves can take their bytes along.
    """

    data: Buffer
    piece_bytes: int
    num_runs: int = 1
    is_by_leaf: bool = False

    @classmethod
    def of_leaves(cls, data: Buffer, num_layers: int, num_leaves: int, leaves_per_piece: int) -> Self:
        """`data` [num_layers, num_leaves, bytes of a leaf], so many leaves of one layer a piece."""
        each, rest = divmod(memoryview(data).nbytes, num_layers * num_leaves)
        if rest or not each:
            raise ValueError(f"{num_leaves} leaves in {num_layers} layers do not share these bytes evenly")
        return cls(data, leaves_per_piece * each, num_layers, is_by_leaf=True)

    @property
    def cut(self) -> Cut:
        """Raises ValueError for bytes that cannot be cut so."""
        num_bytes = memoryview(self.data).nbytes
        if self.num_runs <= 0 or num_bytes % self.num_runs or not num_bytes or self.piece_bytes <= 0:
            raise ValueError(f"{num_bytes} bytes cannot be cut into {self.num_runs} equal runs of pieces")
        cut = Cut(self.num_runs, num_bytes // self.num_runs, self.piece_bytes)
        if self.piece_bytes >= 1 << 32 or cut.num_pieces > MAX_PIECES:
            raise ValueError(f"a section has at most {MAX_PIECES} pieces, each below 4 GiB")
        return cut


@dataclass(frozen=True, slots=True)
class Section:
    """Where a section lies: an entry of the section table, `place` being its number there.

    `tag`: of a section in one piece; those of several have each their tag behind them, so that any run of pieces
    is one read that verifies on its own, with no table of tags to be held in memory for it.
    """

    place: int
    kind: int
    offset: int  # from the record's start
    num_bytes: int  # on disk
    cut: Cut
    tag: bytes | None = None
    is_by_leaf: bool = False

    def pack(self) -> bytes:
        """One entry of the section table."""
        if self.tag is not None:
            return SECTION.pack(self.kind, 0, self.offset, self.num_bytes, self.tag)
        flags = SECTION_CUT | (SECTION_BY_LEAF if self.is_by_leaf else 0)
        cut = CUT.pack(self.cut.piece_bytes, 0, self.cut.run_bytes)
        return SECTION.pack(self.kind, flags, self.offset, self.num_bytes, cut)

    @property
    def tag_bytes(self) -> int:
        """Bytes of the tag behind each piece."""
        return TAG_BYTES if self.tag is None else 0

    def sealed_start(self, piece: int) -> int:
        """Bytes from the section's start to a piece, or to the end of them all."""
        return self.cut.start(piece) + piece * self.tag_bytes

    def open_piece(
        self, seal: Seal, record: int, context: bytes, piece: int, sealed: memoryview, out: memoryview
    ) -> bool:
        """Opens a piece from its bytes on disk into `out`; False: damaged, `out` is void."""
        if self.tag is None:
            return seal.open_into(record, piece_index(self.place, piece), context, sealed, out)
        plain = open_bytes(seal, record, SECTION_INDEX + self.place, context, sealed, self.tag)
        if plain is not None:
            out[:] = plain
        return plain is not None


def part_of(section: Section, data: Buffer, num_leaves: int, first: int, count: int) -> Pieces:
    """The section for a copy of `count` leaves from `first` on; `num_leaves` are the record's."""
    cut = section.cut
    if count < num_leaves:
        each, rest = divmod(cut.run_bytes, num_leaves)
        assert section.is_by_leaf
        assert not rest, "checked when it was written, and sealed since"
        starts = (run * cut.run_bytes + first * each for run in range(cut.num_runs))
        data = b"".join(data[start : start + count * each] for start in starts)
    return Pieces(data, cut.piece_bytes, cut.num_runs, section.is_by_leaf)


def piece_index(place: int, piece: int) -> int:
    """What names a piece of the section at `place` among the record's pieces."""
    return SECTION_PIECE_INDEX + (place << 32) + piece


def section_bytes(data: Buffer | Pieces) -> int:
    """Bytes that a section takes on disk. Raises ValueError."""
    if isinstance(data, Pieces):
        return data.cut.num_bytes + data.cut.num_pieces * TAG_BYTES
    return memoryview(data).nbytes


def plain_section_bytes(data: Buffer | Pieces) -> int:
    """Bytes that were handed over."""
    return memoryview(data.data if isinstance(data, Pieces) else data).nbytes


def seal_section(
    seal: Seal, record: int, context: bytes, place: int, kind: int, offset: int, data: Buffer | Pieces
) -> tuple[Section, Buffer]:
    """(entry, bytes to write at `offset` of the record)."""
    if not isinstance(data, Pieces):
        sealed, tag = seal_bytes(seal, record, SECTION_INDEX + place, context, bytes(data))
        return Section(
            place, kind, offset, len(sealed), Cut(1, len(sealed), max(1, len(sealed))), tag
        ), sealed
    cut, plain = data.cut, memoryview(data.data).cast("B")
    out = memoryview(bytearray(section_bytes(data)))
    start = at = 0
    for piece, size in enumerate(cut.sizes(0, cut.num_pieces)):
        behind = at + size + TAG_BYTES
        index = piece_index(place, piece)
        tag = seal.seal_into(record, index, context, plain[start : start + size], out[at:behind])
        out[behind - TAG_BYTES : behind] = tag
        start, at = start + size, behind
    return Section(place, kind, offset, len(out), cut, is_by_leaf=data.is_by_leaf), out


def unpack_sections(table: bytes | memoryview, count: int) -> tuple[Section, ...]:
    """The section table; the caller has opened the tables. Raises Malformed.

    A section with flags that this version does not know is left out: as if the record had no such section.
    """
    found = []
    for place in range(count):
        kind, flags, offset, num_bytes, last = SECTION.unpack_from(table, place * SECTION.size)
        if num_bytes > MAX_SECTION_BYTES:
            raise Malformed("a section of an impossible size")
        if flags == 0:
            cut = Cut(1, num_bytes, max(1, num_bytes))
            found.append(Section(place, kind, offset, num_bytes, cut, last))
        elif flags & SECTION_CUT and not flags & ~(SECTION_CUT | SECTION_BY_LEAF):
            cut = _cut_of(num_bytes, *CUT.unpack(last))
            is_by_leaf = bool(flags & SECTION_BY_LEAF)
            found.append(Section(place, kind, offset, num_bytes, cut, is_by_leaf=is_by_leaf))
    return tuple(found)


def _cut_of(num_bytes: int, piece_bytes: int, zero: int, run_bytes: int) -> Cut:
    """The cut of a section that takes `num_bytes` on disk. Raises Malformed."""
    if not piece_bytes or not run_bytes or zero:
        raise Malformed("a section that is cut in an impossible way")
    per_run = -(-run_bytes // piece_bytes)
    num_runs, rest = divmod(num_bytes, run_bytes + per_run * TAG_BYTES)
    if rest or not num_runs or num_runs * per_run > MAX_PIECES:
        raise Malformed("a section's pieces do not fill it")
    return Cut(num_runs, run_bytes, piece_bytes)
