"""Scores of single leaves in plain torch."""

from __future__ import annotations

import torch

from edgekv_kernels.reference.abstracts import decode_keys
from edgekv_kernels.reference.turning import turned


def leaf_scores(
    q: torch.Tensor, keys: torch.Tensor, scale: float, turns: torch.Tensor | None, style: str
) -> torch.Tensor:
    """Scores by low-bit keys [n, Hkv * (6 D + 8)]: [T, Hq, n, 16]."""
    dim = q.shape[2]
    return true_scores(q, decode_keys(keys, keys.shape[1] // (6 * dim + 8), dim), scale, turns, style)


def true_scores(
    q: torch.Tensor, keys: torch.Tensor, scale: float, turns: torch.Tensor | None, style: str
) -> torch.Tensor:
    """Scores by keys [n, Hkv, 16, D] of q [T, Hq, D], turned for each leaf by turns [n, R]: [T, Hq, n, 16]."""
    num_kv_heads = keys.shape[1]
    if turns is None:
        grouped = q.unflatten(1, (num_kv_heads, -1))
        return torch.einsum("tkgd,nksd->tkgns", grouped, keys.float()).flatten(1, 2) * scale
    each = turned(q, turns, style).unflatten(2, (num_kv_heads, -1))
    return torch.einsum("ntkgd,nksd->tkgns", each, keys.float()).flatten(1, 2) * scale
