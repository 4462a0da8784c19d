"""Prefill attention by torch's own fused kernel over gathered leaves; for CPUs without bfloat16 products.

Knows pools and blocks. Scratch is bounded: at most SEGMENT_TOKENS tokens are gathered at a time, then merged.
Grouped heads become rows of one long query per kv head, which works because nothing is masked there.
"""

from __future__ import annotations

import torch

from edgekv_kernels.kv import LEAF_TOKENS
from edgekv_kernels.merging import merge_
from edgekv_kernels.reference.turning import turned_back

SEGMENT_TOKENS = 4096


def attend_leaves(
    q: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: int,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    turns: torch.Tensor | None,
    style: str,
) -> None:
    """Queries [T, Hq, D] over the first `num_tokens` tokens of the leaves in `slots`; bfloat16 products.

    Where leaves have `turns` it is the gathered keys that are turned, back: one text serves all queries.
    """
    num_queries, num_heads, dim = q.shape
    num_kv_heads = pool.shape[2]
    group = num_heads // num_kv_heads
    rows = q.reshape(num_queries, num_kv_heads, group, dim).permute(1, 2, 0, 3)
    rows = rows.reshape(1, num_kv_heads, group * num_queries, dim).bfloat16()
    step = SEGMENT_TOKENS // LEAF_TOKENS
    out.zero_()
    lse.fill_(-torch.inf)
    for first in range(0, -(-num_tokens // LEAF_TOKENS), step):
        leaves = pool.index_select(0, slots[first : first + step])
        if turns is not None:
            leaves[:, 0] = turned_back(leaves[:, 0], turns[first : first + step], style)
        count = min(SEGMENT_TOKENS, num_tokens - first * LEAF_TOKENS)
        kv = leaves.permute(1, 2, 0, 3, 4).reshape(2, 1, num_kv_heads, -1, dim)[:, :, :, :count]
        part_out, part_lse = _flash(rows, kv[0], kv[1], scale, is_causal=False)
        part_out = part_out.reshape(num_kv_heads, group, num_queries, dim).permute(2, 0, 1, 3)
        part_lse = part_lse.reshape(num_kv_heads, group, num_queries).permute(2, 0, 1)
        merge_(
            out,
            lse,
            part_out.float().reshape(out.shape).contiguous(),
            part_lse.reshape(lse.shape).contiguous(),
        )


def attend_block(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, out: torch.Tensor, lse: torch.Tensor
) -> None:
    """Causal attention inside a block; every head of a group gets its own copy of the keys."""
    group = q.shape[1] // k.shape[1]
    heads = [x.bfloat16().transpose(0, 1)[None] for x in (q, k, v)]
    keys, values = (x.repeat_interleave(group, dim=1) for x in heads[1:])
    block_out, block_lse = _flash(heads[0], keys, values, scale, is_causal=True)
    out.copy_(block_out[0].transpose(0, 1))
    lse.copy_(block_lse[0].T)


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with its log-sum-exp: out [1, H, T, D] bfloat16 and lse [H, T] of the shapes' heads, float32."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001 - the one with lse
        q, k, v, 0.0, is_causal, scale=scale
    )
    return out, lse.float()
