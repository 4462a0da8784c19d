"""Exact attention of one pass: every leaf of the past, wherever it lies.

A merge of segments: leaves on the device in one call, leaves attended where they lie on the host, segments
streamed from below as they land, and the new block itself (causal). Knows slots, not bytes on disk; the
residency has made room and planned the stream before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import edgekv_kernels as kernels
from edgekv.cache.directory import ABSENT
from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence as Ids

    from numpy.typing import NDArray

    from edgekv.cache.directory import Directory
    from edgekv.cache.sequence import Sequence
    from edgekv.models.decoder import Attend
    from edgekv.tiers.arrivals import Arrivals
    from edgekv.tiers.residency import Residency

    Slots = NDArray[np.int32]


@dataclass(slots=True)
class _Layout:
    """Slots of one sequence as tensors `[num_layers, n]`, valid while its directory has this version."""

    version: int
    device: Tensor
    host: Tensor | None
    where: Tensor | None  # of all columns, in the arena that both tiers share; None where they do not
    tail: Tensor  # the columns that new tokens are written to
    first_tail: int
    ends_in_tail: int  # of the device columns, how many come before the tail


class ExactAttention:
    """Makes the `attend` of passes that read everything."""

    def __init__(self, residency: Residency, scale: float) -> None:
        self._residency = residency
        self._scale = scale
        self._layout: _Layout | None = None
        self._owner: Sequence | None = None

    def begin(self, sequence: Sequence, token_ids: Ids[int], arrivals: Arrivals) -> Attend:
        """`attend` for a pass over the next tokens of `sequence`.

        Raises:
            CapacityError: no room for the new leaves.
            DamagedColumns: (while the pass runs) leaves on disk turned out damaged.
        """
        start, count = sequence.num_tokens, len(token_ids)
        self._residency.prepare(sequence, start + count)
        stream = self._residency.stream
        if stream.is_open:
            stream.begin_pass(sequence)
        layout = self._slots(sequence, start)
        pool, host = self._residency.mover.device.pool, self._residency.mover.host.pool
        on_device = layout.ends_in_tail * LEAF_TOKENS + start - layout.first_tail * LEAF_TOKENS
        on_host = 0 if layout.host is None else layout.host.shape[1] * LEAF_TOKENS
        streams, scale = stream.is_open, self._scale
        if count == 1 and layout.where is not None and not streams and not arrivals.in_flight:
            return self._token_pass(layout, start)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            arrivals.wait(layer)
            kernels.append_kv(pool, layout.tail[layer], start % LEAF_TOKENS, k, v)
            if count == 1:  # its own key is in the pool already
                out, lse = kernels.attend_leaves(q, pool, layout.device[layer], on_device + 1, scale)
            else:
                out, lse = kernels.attend_block(q, k, v, scale)
                if on_device:
                    part = kernels.attend_leaves(q, pool, layout.device[layer], on_device, scale)
                    kernels.merge_(out, lse, *part)
            if layout.host is not None:
                part = kernels.attend_leaves(q, host, layout.host[layer], on_host, scale)
                kernels.merge_(out, lse, *part)
            if streams:
                for slots, num_tokens in stream.segments(layer):
                    kernels.merge_(out, lse, *kernels.attend_leaves(q, pool, slots, num_tokens, scale))
            return out

        return attend

    def _token_pass(self, layout: _Layout, start: int) -> kernels.TokenPass:
        """The pass over token `start` where every leaf lies in one arena."""
        assert layout.where is not None

        def reach(layer: int, columns: Tensor) -> None:
            raise AssertionError(f"layer {layer}: all {len(columns)} columns are in memory")

        return kernels.TokenPass(
            pool=self._residency.mover.host.arena,
            where=layout.where,
            written=self._residency.mover.device.pool,
            writes=layout.tail,
            offset=start % LEAF_TOKENS,
            fixed=torch.arange(layout.where.shape[1], dtype=torch.int32),
            num_missing=LEAF_TOKENS - 1 - start % LEAF_TOKENS,
            scale=self._scale,
            turns=None,
            choosing=None,
            reach=reach,
        )

    def _slots(self, sequence: Sequence, start: int) -> _Layout:
        """Slot tensors for a pass that begins at token `start`; rebuilt only when something moved."""
        directory = sequence.directory
        first_tail = start // LEAF_TOKENS
        known = self._layout
        if (
            known is not None
            and self._owner is sequence
            and known.version == directory.version
            and known.first_tail == first_tail
        ):
            return known
        present = directory.on_device()
        assert len(present), "the columns being written are on the device"
        host = where = None
        if self._residency.mover.in_place:
            lies_there = np.flatnonzero((directory.host[0] != ABSENT) & (directory.device[0] == ABSENT))
            if len(lies_there):
                host = self._tensor(directory.host[:, lies_there])
            where = self._tensor(self._where(directory))
        self._layout = _Layout(
            version=directory.version,
            device=self._tensor(directory.device[:, present]),
            host=host,
            where=where,
            tail=self._tensor(directory.device[:, first_tail:]),
            first_tail=first_tail,
            ends_in_tail=int(np.searchsorted(present, first_tail)),
        )
        self._owner = sequence
        return self._layout

    def _where(self, directory: Directory) -> Slots:
        """Slots in the arena of all columns that are in memory; the last is the one being written."""
        device, host = self._residency.mover.device, self._residency.mover.host
        slots = np.where(directory.host != ABSENT, directory.host + host.first_slot, ABSENT)
        slots = np.where(directory.device != ABSENT, directory.device + device.first_slot, slots)
        found: Slots = slots[:, slots[0] != ABSENT].astype(np.int32)
        return found

    def _tensor(self, slots: Slots) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(slots)).to(self._residency.mover.device.pool.device)
