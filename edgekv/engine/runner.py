"""One forward pass of one sequence: the only builder of input tensors, and the `attend` the decoder calls.

Attention is a merge of segments: leaves on the device in one call, leaves attended where they lie on the
host, segments streamed from below as they land, and the new block itself (causal). Knows slots, not bytes on
disk; the residency has made room and planned the stream before the pass begins.
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

    from edgekv.cache.sequence import Sequence
    from edgekv.models.decoder import Decoder
    from edgekv.tiers.arrivals import Arrivals
    from edgekv.tiers.residency import Residency


@dataclass(slots=True)
class _Layout:
    """Slots of one sequence as tensors `[num_layers, n]`, valid while its directory has this version."""

    version: int
    device: Tensor
    host: Tensor | None
    tail: Tensor  # the columns that new tokens are written to
    first_tail: int
    ends_in_tail: int  # of the device columns, how many come before the tail


class Runner:
    """Runs blocks of tokens through the decoder and into the pools."""

    def __init__(self, decoder: Decoder, residency: Residency) -> None:
        self.decoder = decoder
        self.residency = residency
        self._scale = decoder.config.head_dim**-0.5
        self._layout: _Layout | None = None
        self._owner: Sequence | None = None

    @torch.inference_mode()
    def forward(self, sequence: Sequence, token_ids: Ids[int], arrivals: Arrivals) -> Tensor:
        """Append `token_ids` to the sequence; hidden states `[T, hidden]` of all of them.

        Raises:
            CapacityError: no room for the new leaves.
            DamagedColumns: leaves on disk turned out damaged; the sequence is as it was before the call.
        """
        start, count = sequence.num_tokens, len(token_ids)
        self.residency.prepare(sequence, start + count)
        stream = self.residency.stream
        if stream.is_open:
            stream.begin_pass(sequence)
        layout = self._slots(sequence, start)
        pool, host = self.residency.mover.device.pool, self.residency.mover.host.pool
        on_device = layout.ends_in_tail * LEAF_TOKENS + start - layout.first_tail * LEAF_TOKENS
        on_host = 0 if layout.host is None else layout.host.shape[1] * LEAF_TOKENS
        streams = stream.is_open

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            arrivals.wait(layer)
            kernels.append_kv(pool, layout.tail[layer], start % LEAF_TOKENS, k, v)
            if count == 1:  # its own key is in the pool already
                out, lse = kernels.attend_leaves(q, pool, layout.device[layer], on_device + 1, self._scale)
            else:
                out, lse = kernels.attend_block(q, k, v, self._scale)
                if on_device:
                    part = kernels.attend_leaves(q, pool, layout.device[layer], on_device, self._scale)
                    kernels.merge_(out, lse, *part)
            if layout.host is not None:
                part = kernels.attend_leaves(q, host, layout.host[layer], on_host, self._scale)
                kernels.merge_(out, lse, *part)
            if streams:
                for slots, num_tokens in stream.segments(layer):
                    kernels.merge_(out, lse, *kernels.attend_leaves(q, pool, slots, num_tokens, self._scale))
            return out

        device = self.decoder.device
        ids = torch.tensor(token_ids, dtype=torch.int64, device=device)
        positions = torch.arange(start, start + count, device=device)
        hidden = self.decoder.forward(ids, positions, attend)
        sequence.token_ids.extend(token_ids)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`[M, vocab]` float32."""
        return self.decoder.logits(hidden)

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
        host = None
        if self.residency.mover.in_place:
            lies_there = np.flatnonzero((directory.host[0] != ABSENT) & (directory.device[0] == ABSENT))
            if len(lies_there):
                host = self._tensor(directory.host[:, lies_there])
        self._owner = sequence
        self._layout = _Layout(
            version=directory.version,
            device=self._tensor(directory.device[:, present]),
            host=host,
            tail=self._tensor(directory.device[:, first_tail:]),
            first_tail=first_tail,
            ends_in_tail=int(np.searchsorted(present, first_tail)),
        )
        return self._layout

    def _tensor(self, slots: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(slots)).to(self.decoder.device)
