"""An exact sliding window: every token reads the last ones before it, keys at their true distances, nothing else.

What StreamingLLM keeps (arXiv 2309.17453), as the method that selection is compared with. With `has_sink` the first
leaf is read too, as if it lay right behind the window. A block's tokens share their past: the first of them reads
`num_tokens`, the last one the block's others as well, so none reads less than the window. Older KV stays where it
is and is not read. Knows slots and positions; not what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

import edgekv_kernels as kernels
from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence as Ids

    from torch import Tensor

    from edgekv.cache.sequence import Sequence
    from edgekv.models.decoder import Attend
    from edgekv.models.rope import Rope
    from edgekv.tiers.arrivals import Arrivals
    from edgekv.tiers.residency import Residency


@dataclass(frozen=True, slots=True)
class SlidingAttention:
    """Makes the `attend` of passes; the whole sequence lies in the device pool."""

    residency: Residency
    rope: Rope
    num_tokens: int
    scale: float
    has_sink: bool = True

    def begin(self, sequence: Sequence, token_ids: Ids[int], arrivals: Arrivals) -> Attend:
        """`attend` for a pass over the next tokens, which begin with a leaf or are the first.

        Raises:
            CapacityError: no room for the new leaves.
        """
        start, count = sequence.num_tokens, len(token_ids)
        assert start % LEAF_TOKENS == 0, "blocks of whole leaves"
        arrivals.wait_all()
        self.residency.prepare(sequence, start + count)
        pool, tail = self.residency.mover.device.pool, start // LEAF_TOKENS
        first = max(0, tail - -(-self.num_tokens // LEAF_TOKENS))
        slots = torch.from_numpy(np.ascontiguousarray(sequence.directory.device)).to(pool.device)
        window, new, sink = (
            slots[:, first:tail].contiguous(),
            slots[:, tail:].contiguous(),
            slots[:, :1].contiguous(),
        )
        turn = self._turn(first).to(pool.device) if self.has_sink and first else None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kernels.append_kv(pool, new[layer], 0, k, v)
            out, lse = kernels.attend_block(q, k, v, self.scale)
            if tail > first:
                past = (tail - first) * LEAF_TOKENS
                kernels.merge_(out, lse, *kernels.attend_leaves(q, pool, window[layer], past, self.scale))
            if turn is not None:
                of_sink = kernels.attend_leaves(q, pool, sink[layer], LEAF_TOKENS, self.scale, turns=turn)
                kernels.merge_(out, lse, *of_sink)
            return out

        return attend

    def _turn(self, first: int) -> kernels.Turns:
        """The query's turn for the sink: from its place, 0, to the leaf right before column `first`."""
        cos, sin = self.rope.turn(torch.tensor([-(first - 1) * LEAF_TOKENS]))
        return kernels.Turns.each(torch.cat([cos, sin], dim=1), self.rope.style)
