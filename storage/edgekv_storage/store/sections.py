"""Sections of records as the store's callers see them: how they are cut, pieces of them, all of them at once.

Knows the catalog and the readers; not what sections hold. Any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.store.piecejobs import PieceJob, PieceRun, plan_pieces
from edgekv_storage.store.transfer import LeafFault, LeafPlace, PieceRead, Transfer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv_storage.segments.sections import Cut, Section
    from edgekv_storage.store.readers import Readers, Spot


class SectionData(NamedTuple):
    """What `read_sections` brings of one record: `place` is the first of its leaves that was asked for.

    `data` is None where the record has no such section, or any of it is damaged.
    """

    place: LeafPlace
    data: bytearray | None


class Sections:
    """Reads what lies in front of the KV."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    def cut_of(self, place: LeafPlace, kind: int) -> Cut | None:
        """How a section is cut; None where the record that holds `place` has none."""
        self._load([place])
        found = self._locate(place, kind)
        return None if found is None else found[1].cut

    def read(self, requests: Sequence[PieceRead], priority: int) -> Transfer:
        """Starts a transfer. Raises StoreClosed; ValueError for pieces that no section has or a wrong `out`."""
        runs: list[PieceRun] = []
        faults: list[LeafFault] = []
        there = [self._readers.record_of(request.place) for request in requests]
        self._readers.load_tables([place for place in there if place is not None])
        sections: dict[tuple[int, int, int], tuple[Spot, Section] | None] = {}  # many requests, few records
        for number, (request, place) in enumerate(zip(requests, there, strict=True)):
            found = None
            if place is not None:
                key = (place.segment, place.record, request.kind)
                if key not in sections:
                    sections[key] = self._section(place, request.kind)
                found = sections[key]
            if found is None:
                faults += [
                    LeafFault(number, piece, "not in the store") for piece in range(request.num_pieces)
                ]
            else:
                runs.append(_run_of(number, request, *found))
        return self._start(runs, faults, priority)

    def read_all(self, places: Sequence[LeafPlace], kind: int, priority: int = 0) -> list[SectionData]:
        """One section of every record that holds any of `places`, in their order; waits. Raises StoreClosed."""
        return [data for data, _ in self.read_judged(places, kind, priority)]

    def read_judged(
        self, places: Sequence[LeafPlace], kind: int, priority: int = 0
    ) -> list[tuple[SectionData, str | None]]:
        """The same, each with why it did not arrive although it should lie there."""
        firsts: dict[tuple[int, int], LeafPlace] = {}
        for place in places:
            firsts.setdefault(place[:2], place)
        self._load(list(firsts.values()))
        outs: list[bytearray | None] = [None] * len(firsts)
        runs: list[PieceRun] = []
        for number, place in enumerate(firsts.values()):
            found = self._locate(place, kind)
            if found is not None and found[0].holds(found[1]):
                cut = found[1].cut
                out = outs[number] = bytearray(cut.num_bytes)
                request = PieceRead(place, kind, 0, cut.num_pieces, memoryview(out))
                runs.append(_run_of(number, request, *found))
        transfer = self._start(runs, [], priority)
        transfer.wait()
        reasons = {fault.request: fault.reason for fault in transfer.result}
        return [
            (SectionData(place, None if number in reasons else outs[number]), reasons.get(number))
            for number, place in enumerate(firsts.values())
        ]

    def provenances(self, places: Sequence[LeafPlace]) -> list[int | None]:
        """The provenance code of each leaf's record; None where the leaf is not in the store any more."""
        here = self._readers.resolve(places)
        self._readers.load_tables(here)
        codes: dict[tuple[int, int], int | None] = {}
        for place in here:
            if place[:2] not in codes:
                spot = self._readers.spot(place)
                codes[place[:2]] = None if spot is None else spot.tables.header.provenance
        return [codes[place[:2]] for place in here]

    def _load(self, places: Sequence[LeafPlace]) -> None:
        self._readers.load_tables(
            [there for there in map(self._readers.record_of, places) if there is not None]
        )

    def _locate(self, place: LeafPlace, kind: int) -> tuple[Spot, Section] | None:
        there = self._readers.record_of(place)
        return None if there is None else self._section(there, kind)

    def _section(self, place: LeafPlace, kind: int) -> tuple[Spot, Section] | None:
        """The same where the record is known to be there."""
        spot = self._readers.spot(place)
        section = None if spot is None else spot.tables.section(kind)
        return None if spot is None or section is None else (spot, section)

    def _start(self, runs: list[PieceRun], faults: list[LeafFault], priority: int) -> Transfer:
        groups = plan_pieces(runs)
        transfer = Transfer(len(groups), faults)
        jobs = [PieceJob(group, transfer) for group in groups]
        self._readers.submit(jobs, sum(run.stop - run.start for run in runs), priority)
        return transfer


def _run_of(number: int, request: PieceRead, spot: Spot, section: Section) -> PieceRun:
    """Raises ValueError."""
    _, _, first, count, out = request
    cut = section.cut
    if not 0 <= first < first + count <= cut.num_pieces:
        raise ValueError(f"pieces {first} to {first + count} are not in a section of {cut.num_pieces}")
    out = out if out.format == "B" and out.ndim == 1 else out.cast("B")
    plain_start, size = cut.start(first), cut.size(first, count)
    if out.readonly or len(out) != size:
        raise ValueError(f"{count} pieces need {size} writable bytes, not {len(out)}")
    entry = spot.known.entry
    offset = entry.offset + section.offset
    start = offset + plain_start + first * section.tag_bytes
    return PieceRun(
        spot.file,
        offset,
        section,
        first,
        count,
        out,
        number,
        0,
        start,
        start + size + count * section.tag_bytes,
        spot.tables.header.number,
        spot.segment.synced < entry.offset + entry.record_bytes,
        spot.seal,
        spot.tables.context,
    )
