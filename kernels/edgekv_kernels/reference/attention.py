"""Partial attention in plain torch: scores, log-sum-exp, weighted sum."""

from __future__ import annotations

import torch

from edgekv_kernels.reference.turning import turned_back


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
) -> None:
    """Queries q [T, Hq, D] over k, v [Hkv, S, D]; S > 0."""
    num_queries, num_heads, dim = q.shape
    grouped = q.reshape(num_queries, k.shape[0], num_heads // k.shape[0], dim)
    scores = torch.einsum("thgd,hsd->thgs", grouped, k) * scale
    if causal:
        hidden = torch.ones(num_queries, k.shape[1], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(hidden[:, None, None, :], -torch.inf)
    log_sum = scores.logsumexp(-1)
    weights = (scores - log_sum[..., None]).exp()
    out.copy_(torch.einsum("thgs,hsd->thgd", weights, v).reshape_as(out))
    lse.copy_(log_sum.reshape_as(lse))


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
    """Queries [T, Hq, D] over the first `num_tokens` tokens of the leaves in `slots`, turned by `turns`."""
    leaves = pool[slots.long()]  # [n, 2, Hkv, 16, D]
    if turns is not None:
        leaves = leaves.float()
        leaves[:, 0] = turned_back(leaves[:, 0], turns, style)
    kv = leaves.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :num_tokens].float()
    _attend(q, kv[0], kv[1], scale, out, lse, causal=False)


def attend_block(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, out: torch.Tensor, lse: torch.Tensor
) -> None:
    """Causal attention inside a block of T tokens; k, v [T, Hkv, D] rounded to bfloat16 as the pool does."""
    keys = k.bfloat16().float().transpose(0, 1)
    values = v.bfloat16().float().transpose(0, 1)
    _attend(q, keys, values, scale, out, lse, causal=True)
