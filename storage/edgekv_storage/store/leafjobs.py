"""Reads of leaf runs: planned into few contiguous reads, opened and verified in the reader's threads.

Knows leaves, seals and the reader protocol; not how a reader reads nor where a store keeps its records.
"""

from __future__ import annotations

import errno
import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.crypt import TAG_BYTES, open_bytes
from edgekv_storage.io.protocol import ReadJob
from edgekv_storage.sealing import PLAIN
from edgekv_storage.store.transfer import DAMAGED, LeafFault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekv_storage.crypt import Seal
    from edgekv_storage.files import SegmentFile
    from edgekv_storage.store.transfer import LeafPlace, Transfer

_log = logging.getLogger(__name__)
_MERGE_BYTES = 1 << 20  # one read; more gains no bandwidth and costs parallelism
_MERGE_PARTS = 512  # below IOV_MAX
LOST = frozenset({errno.EIO, errno.ENOENT, errno.ESTALE})  # will not read better the next time
_local = threading.local()
opening = threading.Lock()
"""One thread opens at a time. The cipher lets go of the GIL at every leaf, and sixteen threads that take it from
each other so paid three times the work in context switches; one alone opens 2.5 GB/s of 12 KiB leaves, and more
of larger ones.
"""


def _scratch(num_bytes: int) -> memoryview:
    """This thread's memory of just that size: a reader thread opens leaves of one size, one after the other."""
    scratch: memoryview | None = getattr(_local, "scratch", None)
    if scratch is None or len(scratch) != num_bytes:
        scratch = _local.scratch = memoryview(bytearray(num_bytes))
    return scratch


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
        """Opens what was read into `out`, in its place; its leaves that do not match their tags."""
        if not self.seal.is_encrypted:
            return self._compared()
        with opening:
            return self._opened()

    def _compared(self) -> list[int]:
        tag_of, size, out = PLAIN.tag, self.leaf_bytes, self.out
        found = [tag_of(out[at : at + size]) for at in range(0, len(out), size)]
        if b"".join(found) == self.tags:
            return []
        return [i for i, tag in enumerate(found) if tag != self.tags[i * TAG_BYTES : (i + 1) * TAG_BYTES]]

    def _opened(self) -> list[int]:
        """Leaf by leaf through a small scratch that stays in the cache: the cipher wants the tag behind the leaf.

        Reading a whole job into pooled memory and opening from there spared this copy and cost more: megabytes in
        flight, in pages that were fresh or cold (docs/measurements.md, "encryption").
        """
        open_into, size, out, tags = self.seal.open_into, self.leaf_bytes, self.out, self.tags
        record, context = self.place.record, self.context
        scratch = _scratch(size + TAG_BYTES)
        bad = []
        for leaf in range(len(out) // size):
            into = out[leaf * size : (leaf + 1) * size]
            scratch[:size] = into
            scratch[size:] = tags[leaf * TAG_BYTES : (leaf + 1) * TAG_BYTES]
            if not open_into(record, self.piece + leaf, context, scratch, into):
                bad.append(leaf)
        return bad

    def read_again(self, leaf: int) -> bool:
        """Whether a leaf that did not verify does so when read anew.

        Memory that somebody else wrote to meanwhile, or a drive that errs now and then, must not cost the leaf.
        """
        size, tag = self.leaf_bytes, self.tags[leaf * TAG_BYTES : (leaf + 1) * TAG_BYTES]
        try:
            data = self.file.read(size, self.offset + leaf * size)
        except OSError:
            return False
        piece = self.piece + leaf
        opened = open_bytes(self.seal, self.place.record, piece, self.context, data, tag)
        if opened is None or len(data) != size:
            return False
        self.out[leaf * size : (leaf + 1) * size] = opened
        return True


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
            leaves = [leaf for leaf in run.faulty() if not run.read_again(leaf)]
            faults += [LeafFault(run.request, run.first + leaf, DAMAGED) for leaf in leaves]
            damaged += [run.place._replace(leaf=run.place.leaf + leaf) for leaf in leaves]
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
                piece=run.piece + first,
            )
        )
    return pieces
