"""Virtual positions: where far columns seem to lie once a conversation is longer than the trained window.

Columns within the window keep their distance: at one distance for all, KL to full attention over 6,000 tokens rose
from 0.002 to 0.2 nats. Farther ones are laid over the window's middle again and again, a quarter of the window at a
time, so that what was said in a row still seems so: at one distance for all, numbers and a novel's next tokens were
less likely. The sink lies in the middle too: at the window's edge a passkey in it was missed, and so was one in
columns laid as far as there.

Keys are stored rotated at their absolute positions, and rotations form a group: turning the query by the
opposite angle is the same as moving the key, so no stored byte changes. Knows positions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels
from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from edgekv.models.rope import Rope

STEP_TOKENS = 512  # a layout stays fixed for so many tokens, so that a turn sees one layout


class VirtualLayout:
    """Columns nearer than the trained window keep their distance; farther ones get a virtual one within it."""

    def __init__(self, rope: Rope, trained_tokens: int) -> None:
        self.trained_tokens = trained_tokens
        self._rope = rope
        self._step = min(STEP_TOKENS, max(LEAF_TOKENS, trained_tokens // 4))
        self._reach = max(LEAF_TOKENS, trained_tokens - self._step - 2 * LEAF_TOKENS)
        self._middle = trained_tokens * 3 // 8
        span = min(trained_tokens // 4, 2 * (self._middle - self._step))  # none seems later than the pass
        self._span = max(1, span // LEAF_TOKENS) * LEAF_TOKENS
        self._end = -1
        self._turns: kernels.Turns | None = None

    def is_needed(self, num_tokens: int) -> bool:
        """Whether some columns of a sequence of `num_tokens` lie beyond the trained window."""
        return num_tokens > self.trained_tokens

    def turns(self, num_columns: int, end: int) -> kernels.Turns | None:
        """Extra rotation of the query for each of more than `num_columns` columns.

        `end`: one past the last position of the pass. None while every distance is a trained one.
        """
        if not self.is_needed(end):
            return None
        end = -(-end // self._step) * self._step
        if end != self._end or self._turns is None:
            columns = torch.arange(end // LEAF_TOKENS + 1, dtype=torch.int64)
            true = columns * LEAF_TOKENS
            is_far = true < end - self._reach
            folded = end - self._middle - self._span // 2 + true % self._span  # one turn for a whole span
            virtual = torch.where(is_far, folded, true)
            virtual[0] = end - max(LEAF_TOKENS, self._middle)
            offsets, of = (true - virtual).unique(return_inverse=True)  # few: a span has one
            rows = torch.cat(self._rope.turn(offsets), dim=1)
            self._turns, self._end = kernels.Turns(rows, of.int(), self._rope.style), end
        assert len(self._turns) > num_columns
        return self._turns
