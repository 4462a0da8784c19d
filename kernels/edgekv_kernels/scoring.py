"""Scores of single leaves, not summed: host side. For measurements and exact searches; plain in every form.

Row c of `keys` and slot c of `slots` are column c of one layer; `turns`, None where none is turned, has a row for
each given leaf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekv_kernels.kv import LEAF_TOKENS
from edgekv_kernels.reference import scoring as reference
from edgekv_kernels.turns import spread

if TYPE_CHECKING:
    from edgekv_kernels.turns import Turns


def leaf_scores(
    q: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    turns: Turns | None = None,
) -> torch.Tensor:
    """Scores by the low-bit keys of leaves: float32 [T, Hq, n, 16]. q: float32 [T, Hq, D]; keys: uint8 [n, ...]."""
    assert keys.dtype is torch.uint8, keys.dtype
    assert turns is None or len(turns) == len(keys), (len(keys), turns)
    return reference.leaf_scores(q, keys, scale, *spread(turns))


def leaf_logsumexp(
    q: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: int,
    scale: float,
    turns: Turns | None = None,
) -> torch.Tensor:
    """Log-sum-exp of the true scores of each leaf, the last of which may be unfinished: float32 [T, Hq, n].

    pool: bfloat16 [num_slots, 2, Hkv, 16, D]; slots: int32 [n]; num_tokens: of all leaves together. A softmax over
    leaves gives the attention that each gets.
    """
    missing = len(slots) * LEAF_TOKENS - num_tokens
    assert 0 <= missing < LEAF_TOKENS, (slots.shape, num_tokens)
    scores = reference.true_scores(q, pool[slots.long(), 0], scale, *spread(turns))
    if missing:
        scores[:, :, -1, LEAF_TOKENS - missing :] = -torch.inf
    return scores.logsumexp(-1)
