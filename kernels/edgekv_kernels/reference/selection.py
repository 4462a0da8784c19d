"""Scoring and choosing leaves by their abstracts in plain torch."""

from __future__ import annotations

import torch

from edgekv_kernels.reference.abstracts import decode_keys, decode_nodes, unpack_keys
from edgekv_kernels.reference.turning import turned

NODE_LEAVES = 8


def _grouped(q: torch.Tensor, num_kv_heads: int, turns: torch.Tensor | None, style: str) -> torch.Tensor:
    """Queries [T, Hq, D] as [n or 1, T, Hkv, G, D], turned per row of `turns` if given."""
    every = q[None] if turns is None else turned(q, turns, style)
    num_turns, num_queries, num_heads, dim = every.shape
    return every.reshape(num_turns, num_queries, num_kv_heads, num_heads // num_kv_heads, dim)


def score_leaves(
    q: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    turns: torch.Tensor | None,
    style: str,
    out: torch.Tensor,
) -> None:
    """Softmax mass of the leaves whose rows are `keys` [n, ...], summed over queries and heads; turns [n, R]."""
    _, num_heads, dim = q.shape
    num_kv_heads = keys.shape[1] // (6 * dim + 8)
    leaves = decode_keys(keys, num_kv_heads, dim)
    grouped = _grouped(q, num_kv_heads, turns, style).expand(len(keys), -1, -1, -1, -1)
    scores = torch.einsum("ntkgd,nksd->tkgns", grouped, leaves) * scale
    weights = scores.flatten(3).softmax(-1).unflatten(3, (len(keys), 16))
    assert weights.shape[1] * weights.shape[2] == num_heads
    out.copy_(weights.sum((0, 1, 2, 4)))


def leaf_bounds(
    q: torch.Tensor, keys: torch.Tensor, scale: float, turns: torch.Tensor | None, style: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest possible score of a key of each leaf: [T, Hq, n] twice."""
    dim = q.shape[2]
    low, step, _ = unpack_keys(keys, keys.shape[1] // (6 * dim + 8), dim)
    return _bounds(q, low, low + 3 * step, scale, turns, style)


def node_bounds(
    q: torch.Tensor, nodes: torch.Tensor, scale: float, turns: torch.Tensor | None, style: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest possible score of a key of each node: [T, Hq, n] twice."""
    dim = q.shape[2]
    low, high, _ = decode_nodes(nodes, nodes.shape[1] // (3 * dim + 8), dim)
    return _bounds(q, low, high, scale, turns, style)


def _bounds(
    q: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    scale: float,
    turns: torch.Tensor | None,
    style: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Interval arithmetic of scale * q . k for low <= k <= high [n, Hkv, D]; scale > 0."""
    grouped = _grouped(q, low.shape[1], turns, style)
    if turns is None:  # one product instead of one for each row
        grouped, formula = grouped[0], "tkgd,nkd->tkgn"
    else:
        formula = "ntkgd,nkd->tkgn"
    plus, minus = grouped.clamp_min(0), grouped.clamp_max(0)
    upper = torch.einsum(formula, plus, high) + torch.einsum(formula, minus, low)
    lower = torch.einsum(formula, plus, low) + torch.einsum(formula, minus, high)
    return lower.flatten(1, 2) * scale, upper.flatten(1, 2) * scale


def score_nodes(
    q: torch.Tensor,
    nodes: torch.Tensor,
    scale: float,
    alpha: float,
    turns: torch.Tensor | None,
    style: str,
    out: torch.Tensor,
) -> None:
    """Softmax over nodes of mean + alpha * (bound - mean), summed over queries and heads; turns [n, R]."""
    dim = q.shape[2]
    num_kv_heads = nodes.shape[1] // (3 * dim + 8)
    _, upper = node_bounds(q, nodes, scale, turns, style)
    _, _, mean = decode_nodes(nodes, num_kv_heads, dim)
    grouped = _grouped(q, num_kv_heads, turns, style).expand(len(nodes), -1, -1, -1, -1)
    middle = torch.einsum("ntkgd,nkd->tkgn", grouped, mean).flatten(1, 2) * scale
    out.copy_((middle + alpha * (upper - middle)).softmax(-1).sum((0, 1)))


def candidates(promise: torch.Tensor, first_node: int, first: int, last: int, keep: int) -> torch.Tensor:
    """Columns of [first, last) that lie in the `keep` most promising nodes or in no scored node, ascending."""
    best = promise.topk(min(keep, len(promise))).indices + first_node
    inside = (best[:, None] * NODE_LEAVES + torch.arange(NODE_LEAVES, device=best.device)).flatten()
    before = torch.arange(first, first_node * NODE_LEAVES, device=best.device)
    after = torch.arange((first_node + len(promise)) * NODE_LEAVES, last, device=best.device)
    return torch.cat((before, inside, after)).sort().values  # the three are disjoint
