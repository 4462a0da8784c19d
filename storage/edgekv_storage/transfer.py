"""Reads of leaf runs: planned into few contiguous reads, verified where they land, reported as one transfer.

Knows leaves, tags and the reader protocol; not how a reader reads nor where a store keeps its records.
"""

from __future__ import annotations

import errno
import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from edgekv_storage.format import TAG_BYTES
from edgekv_storage.io.protocol import ReadJob

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekv_storage.files import SegmentFile

_log = logging.getLogger(__name__)
_MERGE_BYTES = 1 << 20  # one read; more gains no bandwidth and costs parallelism
_MERGE_PARTS = 512  # below IOV_MAX
LOST = frozenset({errno.EIO, errno.ENOENT, errno.ESTALE})  # will not read better the next time


class LeafPlace(NamedTuple):
    """Where a leaf (all its layers) lies. Neighbours in a record differ by one in `leaf` only."""

    segment: int
    record: int
    leaf: int

    def precedes(self, other: LeafPlace) -> bool:
        """Whether `other` is the next leaf of the same record, so that one read brings both."""
        return self.segment == other.segment and self.record == other.record and self.leaf + 1 == other.leaf


class LeafRead(NamedTuple):
    """Wanted: `num_leaves` adjacent leaves of one layer, from `place` on, into `out`.

    `out` is writable and holds exactly num_leaves * leaf_bytes; it must not be touched until the transfer is
    done. Page-aligned memory is read into directly.
    """

    place: LeafPlace
    layer: int
    num_leaves: int
    out: memoryview


class LeafFault(NamedTuple):
    """A leaf that did not arrive: `request` indexes the requests, `leaf` counts from that request's first."""

    request: int
    leaf: int
    reason: str


class Transfer:
    """Handle of one `Store.read` in flight."""

    def __init__(self, num_jobs: int, faults: Sequence[LeafFault] = ()) -> None:
        """`faults`: leaves that could not even be asked for."""
        self._left = num_jobs
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._faults = list(faults)
        self._is_cancelled = False
        if num_jobs == 0:
            self._finished.set()

    def done(self) -> bool:
        """Whether nothing of it will touch memory any more."""
        return self._finished.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks without the GIL until done or `timeout` seconds passed; returns done()."""
        return self._finished.wait(timeout)

    def cancel(self) -> None:
        """Skips what has not started; still wait for what has before reusing the buffers."""
        self._is_cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._is_cancelled

    @property
    def result(self) -> list[LeafFault]:
        """Leaves that did not arrive, empty when all did. Call when done."""
        assert self.done(), "the transfer is still in flight"
        return self._faults

    def part_done(self, faults: list[LeafFault]) -> None:
        """One job of it is over (called by the job)."""
        with self._lock:
            self._faults += faults
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._finished.set()


class LeafRun(NamedTuple):
    """A request, or a part of it, resolved to bytes: `first` is its first leaf, counted in the request."""

    file: SegmentFile
    offset: int
    out: memoryview
    leaf_bytes: int
    tags: bytes
    request: int
    first: int
    place: LeafPlace
    buffered: bool

    def leaves(self) -> range:
        """Indices of its leaves."""
        return range(len(self.out) // self.leaf_bytes)

    def faulty(self) -> list[int]:
        """Leaves of `out` that do not match their tags, counted from this run's first."""
        digest, size, out = xxhash.xxh3_128_digest, self.leaf_bytes, self.out
        found = [digest(out[at : at + size]) for at in range(0, len(out), size)]
        if b"".join(found) == self.tags:
            return []
        return [i for i, tag in enumerate(found) if tag != self.tags[i * TAG_BYTES : (i + 1) * TAG_BYTES]]


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

    def _verify(self) -> list[LeafFault]:
        faults: list[LeafFault] = []
        damaged: list[LeafPlace] = []
        for run in self.runs:
            for leaf in run.faulty():
                faults.append(LeafFault(run.request, run.first + leaf, "damaged on disk"))
                damaged.append(run.place._replace(leaf=run.place.leaf + leaf))
        if damaged:
            self.on_damage(damaged)
        return faults

    def _all(self, reason: str) -> list[LeafFault]:
        return [
            LeafFault(run.request, run.first + leaf, reason) for run in self.runs for leaf in run.leaves()
        ]


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
            )
        )
    return pieces
