"""One forward pass of one sequence: the only builder of input tensors. Decides what a pass attends to.

Knows tokens and positions. What the decoder's `attend` does is `exact.py` or `selected.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from edgekv.engine.budget import FEW_TOKENS
from edgekv.engine.exact import ExactAttention
from edgekv.events import AttentionUse
from edgekv.models.static import StaticEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence as Ids

    from edgekv.cache.sequence import Sequence
    from edgekv.engine.selected import SelectedAttention
    from edgekv.models.decoder import Decoder
    from edgekv.tiers.arrivals import Arrivals
    from edgekv.tiers.residency import Residency

Attention = Literal["auto", "exact", "selected"]


class Runner:
    """Runs blocks of tokens through the decoder and into the pools.

    `attention`: exact reads everything; selected the budget; auto everything while the sequence fits the device
    pool and the trained window.
    """

    def __init__(
        self,
        decoder: Decoder,
        residency: Residency,
        selected: SelectedAttention | None = None,
        attention: Attention = "exact",
    ) -> None:
        assert attention == "exact" or selected is not None
        self.decoder = decoder
        self.residency = residency
        self.attention = attention
        self.selected = selected
        self.static = StaticEncoder(decoder.embedding, decoder.device)
        self._exact = ExactAttention(residency, decoder.config.head_dim**-0.5)

    def selects(self, num_tokens: int, count: int = 1) -> bool:
        """Whether a pass over `count` tokens that ends at `num_tokens` attends to a budget only."""
        if self.attention == "exact" or self.selected is None:
            return False
        if self.attention == "selected":
            return not self.selected.reads_all(num_tokens - count, count)
        longest = min(self.decoder.config.context_length, self.residency.device_tokens)
        return num_tokens > longest

    def block_size(self, start: int, total: int, room: int) -> int:
        """Tokens of the next pass over a context of `total`, at most `room`. Where a budget is read, the last few
        tokens are a pass of their own: a question asks for other columns than the document before it.
        """
        count, rest = min(room, total - start), total - start
        if rest > FEW_TOKENS and self.selects(total, FEW_TOKENS):
            count = min(count, max(rest - FEW_TOKENS, rest // 2))  # no pass of a token or two
        if self.selected is not None and self.selects(start + count, count):
            count = min(count, self.selected.most_tokens(start + count) or count)
        return count

    @torch.inference_mode()
    def forward(self, sequence: Sequence, token_ids: Ids[int], arrivals: Arrivals) -> Tensor:
        """Append `token_ids` to the sequence; hidden states `[T, hidden]` of all of them.

        Raises:
            CapacityError: no room for the new leaves.
            DamagedColumns: leaves on disk turned out damaged; the sequence is as it was before the call.
        """
        start, count = sequence.num_tokens, len(token_ids)
        selects = self.selects(start + count, count)
        method = self.selected if selects else self._exact
        assert method is not None
        attend = method.begin(sequence, token_ids, arrivals)
        hidden = self.decoder.forward(token_ids, start, attend)
        if selects:
            assert self.selected is not None
            self.selected.end()
        sequence.append(token_ids, exactly=not selects)
        if self.selected is not None:
            self.residency.promotion.make_abstracts_at_hand(sequence)
        return hidden

    def columns_to_restore(self, num_tokens: int) -> int | None:
        """Of a context of `num_tokens`: how many columns at its end must be in memory, None for all."""
        if self.selected is None or not self.selects(num_tokens):
            return None
        return self.selected.window_columns(num_tokens)

    def take_use(self) -> AttentionUse:
        """What was attended since the last call."""
        return AttentionUse() if self.selected is None else self.selected.take_use()

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`[M, vocab]` float32."""
        return self.decoder.logits(hidden)
