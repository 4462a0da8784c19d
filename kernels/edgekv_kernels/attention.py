"""Partial attention over pool leaves and inside a block: host side.

Every call returns (out, lse), so results over any cut of the keys merge exactly (`merge_`).
Knows slots and tokens. Does not know positions (keys carry their rotation) nor what was selected.
"""

from __future__ import annotations

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.kv import LEAF_TOKENS
from edgekv_kernels.reference import attention as reference


def attend_leaves(
    q: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: int,
    scale: float,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query over the first `num_tokens` tokens of the listed leaves; no causal mask.

    q: float32 [T, Hq, D], Hq = G * Hkv (query head h reads kv head h // G); pool: bfloat16
    [num_slots, 2, Hkv, 16, D] contiguous; slots: int32 [n] on the pool's device; scores are multiplied by `scale`.
    Returns out float32 [T, Hq, D] and lse float32 [T, Hq] (natural log); no tokens give out 0, lse -inf.
    """
    num_queries, num_heads, dim = q.shape
    assert pool.shape[1] == 2, pool.shape
    assert pool.shape[3:] == (LEAF_TOKENS, dim), (pool.shape, q.shape)
    assert num_heads % pool.shape[2] == 0, (num_heads, pool.shape)
    assert 0 <= num_tokens <= slots.shape[0] * LEAF_TOKENS, (num_tokens, slots.shape)
    if out is None:
        out = torch.empty((num_queries, num_heads, dim), device=q.device)
    if lse is None:
        lse = torch.empty((num_queries, num_heads), device=q.device)
    if num_tokens == 0 or num_queries == 0:
        out.zero_()
        lse.fill_(-torch.inf)
        return out, lse
    reference.attend_leaves(q, pool, slots, num_tokens, scale, out, lse)
    return out, lse


def attend_block(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention inside one block of T tokens (prefill: at most 512).

    q: float32 [T, Hq, D]; k, v: float32 [T, Hkv, D], rounded to bfloat16 first so that the result equals
    attention over the stored leaves. Returns (out, lse) as `attend_leaves` does.
    """
    num_queries, num_heads, dim = q.shape
    assert k.shape == v.shape, (k.shape, v.shape)
    assert k.shape[0] == num_queries, (k.shape, q.shape)
    assert k.shape[2] == dim, (k.shape, q.shape)
    assert num_heads % k.shape[1] == 0, (num_heads, k.shape)
    if out is None:
        out = torch.empty((num_queries, num_heads, dim), device=q.device)
    if lse is None:
        lse = torch.empty((num_queries, num_heads), device=q.device)
    if num_queries == 0:
        return out, lse
    reference.attend_block(q, k, v, scale, out, lse)
    return out, lse
