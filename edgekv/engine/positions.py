"""Virtual positions: where far columns seem to lie once a conversation is longer than the trained window.

Columns within three quarters of the window keep their distance: at one distance for all, KL to full attention over
6,000 tokens rose from 0.002 to 0.2 nats. Farther ones are laid over the window's middle again and again, a quarter
of the window at a time, so that what was said in a row still seems so: at one distance for all, numbers and a
novel's next tokens were less likely. The sink lies in the middle too: at the window's edge a passkey in it was
missed, and so was one in columns laid as far as there. Far columns that a question names seem to lie shortly
before it, one after the other, a sixteenth of the window away: among the others, a number was read and lost, and
answers to questions about long chats were 0.2 nats less likely.

Keys are stored rotated at their absolute positions, and rotations form a group: turning the query by the
opposite angle is the same as moving the key, so no stored byte changes. Knows positions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels
from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from edgekv.models.rope import Rope


class VirtualLayout:
    """Columns nearer than the trained window keep their distance; farther ones get a virtual one within it.

    A layout is made for a prompt's pass of up to `block_tokens` and for an eighth of the window behind it: an
    answer sees one, the same however it was come to. A longer answer gets another one each such stretch.
    """

    def __init__(self, rope: Rope, trained_tokens: int) -> None:
        self.trained_tokens = trained_tokens
        self.block_tokens = max(LEAF_TOKENS, trained_tokens // 8 // LEAF_TOKENS * LEAF_TOKENS)
        self._rope = rope
        self._ahead = self.block_tokens
        self._span = max(LEAF_TOKENS, trained_tokens // 4 // LEAF_TOKENS * LEAF_TOKENS)
        # so far the middle has to lie that nothing seems later than a pass's first query
        self._nearest = self.block_tokens + self._span // 2 + LEAF_TOKENS
        self._middle = trained_tokens * 3 // 8
        self._named_distance = trained_tokens // 16 // LEAF_TOKENS * LEAF_TOKENS
        self._near = max(LEAF_TOKENS, trained_tokens - 2 * LEAF_TOKENS)
        self._end = -1
        self._turns: kernels.Turns | None = None

    def is_needed(self, num_tokens: int) -> bool:
        """Whether some columns of a sequence of `num_tokens` lie beyond the trained window."""
        return num_tokens > self.trained_tokens

    def renew(self) -> None:
        """Another prompt, or another sequence: the next pass gets a layout of its own."""
        self._turns = None

    def turns(self, start: int, end: int, named: Tensor, *, stays: bool = True) -> kernels.Turns | None:
        """Extra rotation of the query for each column of a sequence, for a pass over positions `start` to `end`.

        `named`: int32, columns that a question names; far ones seem to lie shortly before it. `stays`: also for
        the answer behind it; a block of a long prompt reads better without room for one (perplexity 1.016 of a
        window's, 1.023 with it). None while every distance is a trained one.
        """
        if not self.is_needed(end):
            return None
        if self._turns is None or end > self._end:
            ahead = self._ahead if stays else 0
            middle = max(self._middle + ahead // 2, self._nearest + ahead)
            self._end = -(-end // LEAF_TOKENS) * LEAF_TOKENS + ahead
            columns = torch.arange(self._end // LEAF_TOKENS + 1, dtype=torch.int64)
            true = columns * LEAF_TOKENS
            is_far = true < self._end - self._near
            folded = self._end - middle - self._span // 2 + true % self._span  # one turn for a span
            virtual = torch.where(is_far, folded, true)
            virtual[0] = self._end - middle
            moved = named[is_far[named.long()]].long()
            behind = torch.arange(len(moved) - 1, -1, -1) % (self._span // LEAF_TOKENS) + 1
            virtual[moved] = (start // LEAF_TOKENS - behind) * LEAF_TOKENS - self._named_distance
            offsets, of = (true - virtual).unique(return_inverse=True)
            rows = torch.cat(self._rope.turn(offsets), dim=1)
            self._turns = kernels.Turns(rows, of.int(), self._rope.style)
        assert len(self._turns) > start // LEAF_TOKENS
        return self._turns
