"""Reads of sections' pieces: neighbours joined into few reads of whole pages, opened in the reader's threads.

Knows sections, seals and the reader protocol; not where records lie. A damaged piece is reported and costs no
leaf: what it held can be made from the leaves again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.io.buffers import POOL
from edgekv_storage.io.protocol import ReadJob
from edgekv_storage.segments.format import PAGE, round_up
from edgekv_storage.store.leafjobs import opening
from edgekv_storage.store.transfer import DAMAGED, LeafFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv_storage.crypt import Seal
    from edgekv_storage.files import SegmentFile
    from edgekv_storage.segments.sections import Section
    from edgekv_storage.store.transfer import Transfer

_log = logging.getLogger(__name__)
_MERGE_BYTES = 1 << 20
_GAP_BYTES = 32 << 10  # read for nothing between two wanted pieces: takes a drive less time than another read


class PieceRun(NamedTuple):
    """A request, or a part of it, resolved: pieces `first` to `first + num_pieces` of a section into `out`.

    `section_offset` is the section's in the file; `skipped`: pieces of the same request before these; its pieces,
    the tag of the last one included, lie from `start` to `stop` of the file.
    """

    file: SegmentFile
    section_offset: int
    section: Section
    first: int
    num_pieces: int
    out: memoryview
    request: int
    skipped: int
    start: int
    stop: int
    record: int
    buffered: bool
    seal: Seal
    context: bytes

    def faults(self, data: memoryview, offset: int) -> list[LeafFault]:
        """Opens its pieces from `data`, read from `offset` of the file on; those that stay damaged."""
        if not self.seal.is_encrypted:
            return self._open(data, offset)
        with opening:
            return self._open(data, offset)

    def _open(self, data: memoryview, offset: int) -> list[LeafFault]:
        bad = []
        start, at = self.start - offset, 0
        for piece, size in enumerate(self.section.cut.sizes(self.first, self.num_pieces), self.first):
            stop = start + size + self.section.tag_bytes
            into = self.out[at : at + size]
            if not self._open_one(piece, data[start:stop], into) and not self._read_again(piece, into):
                bad.append(LeafFault(self.request, self.skipped + piece - self.first, DAMAGED))
            start, at = stop, at + size
        return bad

    def _open_one(self, piece: int, sealed: memoryview, into: memoryview) -> bool:
        return self.section.open_piece(self.seal, self.record, self.context, piece, sealed, into)

    def _read_again(self, piece: int, into: memoryview) -> bool:
        """A drive that errs now and then must not cost the piece."""
        start, stop = self.section.sealed_start(piece), self.section.sealed_start(piece + 1)
        try:
            data = self.file.read(stop - start, self.section_offset + start)
        except OSError:
            return False
        return len(data) == stop - start and self._open_one(piece, memoryview(bytearray(data)), into)

    def lost(self, reason: str) -> list[LeafFault]:
        """All of its pieces, for a reason."""
        return [LeafFault(self.request, self.skipped + i, reason) for i in range(self.num_pieces)]

    def part(self, first: int, count: int) -> PieceRun:
        """Some of its pieces, counted from its own first."""
        start = self.section.cut.size(self.first, first)
        size = self.section.cut.size(self.first + first, count)
        in_file = self.start + start + first * self.section.tag_bytes
        return self._replace(
            first=self.first + first,
            num_pieces=count,
            out=self.out[start : start + size],
            skipped=self.skipped + first,
            start=in_file,
            stop=in_file + size + count * self.section.tag_bytes,
        )


class PieceJob(ReadJob):
    """One read of the whole pages around one or more runs; they are opened from there into the callers' memory.

    Sections lie in front of the KV, on whose page they end at the latest: the pages are all within the record.
    """

    __slots__ = ("_memory", "_num_bytes", "runs", "transfer")

    def __init__(self, runs: list[PieceRun], transfer: Transfer) -> None:
        offset = runs[0].start // PAGE * PAGE
        super().__init__(runs[0].file, offset, buffered=any(run.buffered for run in runs))
        self.runs = runs
        self.transfer = transfer
        self._num_bytes = max(PAGE, round_up(runs[-1].stop - offset))
        self._memory: memoryview | None = None

    def begin(self) -> list[memoryview] | None:
        """Memory of the process's pool; None after the transfer was cancelled."""
        if self.transfer.is_cancelled:
            return None
        self._memory = POOL.take(self._num_bytes)
        return [self._memory]

    def finish(self, error: OSError | None) -> None:
        """Opens the pieces and counts the job off its transfer."""
        faults: list[LeafFault] = []
        memory, self._memory = self._memory, None
        try:
            if self.transfer.is_cancelled:
                faults = [fault for run in self.runs for fault in run.lost("cancelled")]
            elif error is not None or memory is None:
                faults = [fault for run in self.runs for fault in run.lost(str(error))]
            else:
                faults = [fault for run in self.runs for fault in run.faults(memory, self.offset)]
        except Exception:  # noqa: BLE001  a waiter must never hang, whatever was wrong with the caller's memory
            _log.exception("opening pieces failed on our side")
            faults = [f for run in self.runs for f in run.lost("the destination cannot be written")]
        finally:
            if memory is not None:
                POOL.give(memory)
            self.transfer.part_done(faults)


def plan_pieces(runs: Sequence[PieceRun]) -> list[list[PieceRun]]:
    """Cuts long runs and joins those close to each other, so that each list is one read of about 1 MiB.

    The caller's order is kept, not sorted: what is asked for first is wanted first.
    """
    groups: list[list[PieceRun]] = []
    for run in (part for whole in runs for part in _cut(whole)):
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and last.file is run.file
            and 0 <= run.start - last.stop <= _GAP_BYTES
            and run.stop - groups[-1][0].start <= _MERGE_BYTES
        ):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _cut(run: PieceRun) -> list[PieceRun]:
    if run.stop - run.start <= _MERGE_BYTES:
        return [run]
    parts, first = [], 0
    while first < run.num_pieces:
        count = 1
        at = run.section.sealed_start(run.first + first)
        while (
            first + count < run.num_pieces
            and run.section.sealed_start(run.first + first + count + 1) - at <= _MERGE_BYTES
        ):
            count += 1
        parts.append(run.part(first, count))
        first += count
    return parts
