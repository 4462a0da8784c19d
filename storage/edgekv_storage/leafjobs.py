"""Reads of leaf runs: planned into few contiguous reads, opened and verified in the reader's threads.

Knows leaves, seals and the reader protocol; not how a reader reads nor where a store keeps its records.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.crypt import TAG_BYTES
from edgekv_storage.format import PAGE, round_up
from edgekv_storage.io.buffers import POOL
from edgekv_storage.io.protocol import ReadJob
from edgekv_storage.sealing import PLAIN
from edgekv_storage.transfer import LeafFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgekv_storage.crypt import Seal
    from edgekv_storage.files import SegmentFile
    from edgekv_storage.transfer import LeafPlace, Transfer

_log = logging.getLogger(__name__)
_MERGE_BYTES = 1 << 20  # one read; more gains no bandwidth and costs parallelism
_MERGE_PARTS = 512  # below IOV_MAX
LOST = frozenset({errno.EIO, errno.ENOENT, errno.ESTALE})  # will not read better the next time


class LeafRun(NamedTuple):
    """A request, or a part of it, resolved to bytes: `first` is its first leaf, counted in the request.

    `piece` numbers its first leaf among the pieces of its record, `context` is what they are bound to.
    """

    file: SegmentFile
    offset: int
    out: memoryview
    leaf_bytes: int
    tags: bytes
    request: int
    first: int
    place: LeafPlace
    buffered: bool
    seal: Seal
    context: bytes
    piece: int

    def leaves(self) -> range:
        """Indices of its leaves."""
        return range(len(self.out) // self.leaf_bytes)

    def faulty(self) -> list[int]:
        """Leaves of `out`, not encrypted, that do not match their tags, counted from this run's first."""
        tag_of, size, out = PLAIN.tag, self.leaf_bytes, self.out
        found = [tag_of(out[at : at + size]) for at in range(0, len(out), size)]
        if b"".join(found) == self.tags:
            return []
        return [i for i, tag in enumerate(found) if tag != self.tags[i * TAG_BYTES : (i + 1) * TAG_BYTES]]

    def open_from(self, sealed: memoryview, at: int) -> list[int]:
        """Opens its leaves, encrypted from `at` on in `sealed`, into `out`; the leaves that do not open.

        A leaf's tag is put behind it for the moment, which is where the cipher wants it: `sealed` is
        TAG_BYTES longer than what was read, and afterwards as before.
        """
        open_into, size, out, tags = self.seal.open_into, self.leaf_bytes, self.out, self.tags
        record, piece, context = self.place.record, self.piece, self.context
        bad = []
        for leaf in range(len(out) // size):
            end = at + size
            kept = bytes(sealed[end : end + TAG_BYTES])
            sealed[end : end + TAG_BYTES] = tags[leaf * TAG_BYTES : (leaf + 1) * TAG_BYTES]
            into = out[leaf * size : (leaf + 1) * size]
            if not open_into(record, piece + leaf, context, sealed[at : end + TAG_BYTES], into):
                bad.append(leaf)
            sealed[end : end + TAG_BYTES] = kept
            at = end
        return bad


class LeafJob(ReadJob):
    """One contiguous read that fills one or more runs and verifies them in the reader's thread."""

    __slots__ = ("on_damage", "runs", "transfer")

    def __init__(
        self, runs: list[LeafRun], transfer: Transfer, on_damage: Callable[[list[LeafPlace]], None]
    ) -> None:
        first = runs[0]
        super().__init__(first.file, first.offset, buffered=any(r.buffered for r in runs))
        self.runs = runs
        self.transfer = transfer
        self.on_damage = on_damage

    def begin(self) -> list[memoryview] | None:
        """The callers' memory; None after the transfer was cancelled."""
        return None if self.transfer.is_cancelled else [run.out for run in self.runs]

    def finish(self, error: OSError | None) -> None:
        """Verifies, reports damage to the store, and counts the job off its transfer."""
        faults: list[LeafFault] = []
        try:
            if self.transfer.is_cancelled:
                faults = self._all("cancelled")
            elif error is not None:
                faults = self._all(str(error))
                if error.errno in LOST:
                    self.on_damage(
                        [f.place._replace(leaf=f.place.leaf + i) for f in self.runs for i in f.leaves()]
                    )
            else:
                faults = self._verify()
        except Exception:  # noqa: BLE001  a waiter must never hang, whatever was wrong with the caller's memory
            _log.exception("verifying a read failed on our side")
            faults = self._all("the destination cannot be read back")
        finally:
            self.transfer.part_done(faults)

    def _faulty(self) -> Iterator[tuple[LeafRun, list[int]]]:
        """Each run and its leaves that are not what was written."""
        for run in self.runs:
            yield run, run.faulty()

    def _verify(self) -> list[LeafFault]:
        faults: list[LeafFault] = []
        damaged: list[LeafPlace] = []
        for run, leaves in self._faulty():
            faults += [LeafFault(run.request, run.first + leaf, "damaged on disk") for leaf in leaves]
            damaged += [run.place._replace(leaf=run.place.leaf + leaf) for leaf in leaves]
        if damaged:
            self.on_damage(damaged)
        return faults

    def _all(self, reason: str) -> list[LeafFault]:
        return [
            LeafFault(run.request, run.first + leaf, reason) for run in self.runs for leaf in run.leaves()
        ]


class SealedLeafJob(LeafJob):
    """The same for encrypted leaves: read into a pooled buffer, opened from there into the callers' memory.

    Not opened in place: the memory of a leaf that does not verify is void either way, but the tag needs room
    behind the leaf, which the caller's memory does not have.
    """

    __slots__ = ("_bounce", "_lead", "_span")

    def __init__(
        self, runs: list[LeafRun], transfer: Transfer, on_damage: Callable[[list[LeafPlace]], None]
    ) -> None:
        super().__init__(runs, transfer, on_damage)
        self._lead = self.offset % PAGE  # whole pages are read, so that the read can be direct
        self._span = round_up(self._lead + sum(len(run.out) for run in runs))
        self._bounce: memoryview | None = None
        self.offset -= self._lead

    def begin(self) -> list[memoryview] | None:
        """Pooled memory, with room for a tag behind it; None after the transfer was cancelled."""
        if self.transfer.is_cancelled:
            return None
        self._bounce = POOL.take(self._span + TAG_BYTES)
        return [self._bounce[: self._span]]

    def finish(self, error: OSError | None) -> None:
        """As LeafJob; then the pooled memory is given back."""
        bounce = self._bounce
        super().finish(error)
        self._bounce = None
        if bounce is not None:
            POOL.give(bounce)

    def _faulty(self) -> Iterator[tuple[LeafRun, list[int]]]:
        assert self._bounce is not None, "finished well without having begun"
        at = self._lead
        for run in self.runs:
            yield run, run.open_from(self._bounce, at)
            at += len(run.out)


def job_of(runs: list[LeafRun], transfer: Transfer, on_damage: Callable[[list[LeafPlace]], None]) -> LeafJob:
    """The job of one group that `plan` made; its runs lie in one segment."""
    kind = SealedLeafJob if runs[0].seal.is_encrypted else LeafJob
    return kind(runs, transfer, on_damage)


def plan(runs: Sequence[LeafRun]) -> list[list[LeafRun]]:
    """Cuts long runs and joins neighbouring ones, so that each list is one contiguous read of about 1 MiB.

    The caller's order is kept, not sorted: what is asked for first is wanted first.
    """
    groups: list[list[LeafRun]] = []
    num_bytes = 0
    for run in (piece for whole in runs for piece in _cut(whole)):
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and last.file is run.file
            and last.offset + len(last.out) == run.offset
            and num_bytes + len(run.out) <= _MERGE_BYTES
            and len(groups[-1]) < _MERGE_PARTS
        ):
            groups[-1].append(run)
            num_bytes += len(run.out)
        else:
            groups.append([run])
            num_bytes = len(run.out)
    return groups


def _cut(run: LeafRun) -> list[LeafRun]:
    if len(run.out) <= _MERGE_BYTES:
        return [run]
    step = max(1, _MERGE_BYTES // run.leaf_bytes)
    pieces = []
    for first in range(0, len(run.out) // run.leaf_bytes, step):
        at, end = first * run.leaf_bytes, (first + step) * run.leaf_bytes
        pieces.append(
            run._replace(
                offset=run.offset + at,
                out=run.out[at:end],
                tags=run.tags[first * TAG_BYTES : (first + step) * TAG_BYTES],
                first=run.first + first,
                place=run.place._replace(leaf=run.place.leaf + first),
                piece=run.piece + first,
            )
        )
    return pieces
