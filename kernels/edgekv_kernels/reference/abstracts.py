"""Abstracts of keys in plain torch: low-bit keys of a leaf, minimum, maximum and mean of a node.

The rows' layouts are told in `edgekv_kernels.abstracts`.
"""

from __future__ import annotations

import torch

_SLACK = 1e-4  # of a quantum: what makes bounds hold in any order of float32 arithmetic
_SMALLEST = 1e-30  # scale of nothing but zeros


def pack_keys(pool: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> None:
    """Low-bit keys of the leaves in `slots` to out [n, Hkv * (6 D + 8)]."""
    keys = pool[slots.long(), 0].float()  # [n, Hkv, 16, D]
    num_leaves, num_kv_heads, _, dim = keys.shape
    least, most = keys.amin(2), keys.amax(2)
    low_scale = (least.abs().amax(-1, keepdim=True) / 127).clamp_min(_SMALLEST)
    low = (least / low_scale - _SLACK).floor().clamp(-128, 127)
    base = low * low_scale
    span = most - base
    step_scale = (span.amax(-1, keepdim=True) / (3 * 254.9)).clamp_min(_SMALLEST)
    step = (span / (3 * step_scale) + _SLACK).ceil().clamp(1, 255)
    width = (step * step_scale)[:, :, None]
    codes = ((keys - base[:, :, None]) / width).round().clamp(0, 3).byte()
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=pool.device)
    grouped = codes.reshape(num_leaves, num_kv_heads, 16, dim // 16, 4, 4) << shifts[:, None]
    packed = grouped.sum(-2, dtype=torch.uint8).transpose(2, 3)  # [n, Hkv, D / 16, 16 tokens, 4]
    fields = (low_scale.view(torch.uint8), step_scale.view(torch.uint8), low.char().view(torch.uint8))
    row = torch.cat((*fields, step.byte(), packed.flatten(2)), dim=-1)
    out.copy_(row.flatten(1))


def unpack_keys(
    keys: torch.Tensor, num_kv_heads: int, dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [n, Hkv * (6 D + 8)] -> low, step float32 [n, Hkv, D] and codes uint8 [n, Hkv, 16, D]."""
    heads = keys.unflatten(1, (num_kv_heads, -1))
    scales, low, step, packed = heads.split([8, dim, dim, 4 * dim], dim=-1)
    scale = scales.contiguous().view(torch.float32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=keys.device)
    bits = packed.unflatten(-1, (dim // 16, 16, 1, 4)) >> shifts[:, None] & 3  # [n, Hkv, D / 16, 16, 4, 4]
    codes = bits.transpose(2, 3).flatten(3)
    lows = low.contiguous().view(torch.int8).float() * scale[..., :1]
    return lows, step.float() * scale[..., 1:], codes


def decode_keys(keys: torch.Tensor, num_kv_heads: int, dim: int) -> torch.Tensor:
    """The keys that rows [n, Hkv * (6 D + 8)] stand for: float32 [n, Hkv, 16, D]."""
    low, step, codes = unpack_keys(keys, num_kv_heads, dim)
    return low[:, :, None] + step[:, :, None] * codes


def pack_nodes(pool: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> None:
    """Minimum, maximum and mean of every eight leaves of `slots` [8 n] to out [n, Hkv * (3 D + 8)]."""
    leaves = pool[slots.long(), 0].float().unflatten(0, (-1, 8))  # [n, 8, Hkv, 16, D]
    keys = leaves.transpose(1, 2).flatten(2, 3)  # [n, Hkv, 128, D]
    out.copy_(_node_rows(keys.amin(2), keys.amax(2), keys.mean(2)))


def nodes_of_keys(keys: torch.Tensor, num_kv_heads: int, dim: int) -> torch.Tensor:
    """Nodes [n, Hkv * (3 D + 8)] of low-bit keys [8 n, Hkv * (6 D + 8)]: the bounds enclose the true keys still."""
    low, step, codes = unpack_keys(keys, num_kv_heads, dim)
    mean = low + step * codes.float().mean(2)
    parts = [x.unflatten(0, (-1, 8)) for x in (low, low + 3 * step, mean)]
    return _node_rows(parts[0].amin(1), parts[1].amax(1), parts[2].mean(1))


def nodes_of_nodes(nodes: torch.Tensor, num_kv_heads: int, dim: int) -> torch.Tensor:
    """Rows [n, Hkv * (3 D + 8)] of every eight of nodes [8 n, the same]: bounds of bounds, mean of means."""
    low, high, mean = (x.unflatten(0, (-1, 8)) for x in decode_nodes(nodes, num_kv_heads, dim))
    return _node_rows(low.amin(1), high.amax(1), mean.mean(1))


def _node_rows(least: torch.Tensor, most: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Rows of nodes with these bounds and means, each [n, Hkv, D]."""
    largest = torch.maximum(least.abs(), most.abs()).amax(-1, keepdim=True)
    scale = (largest / 126.9).clamp_min(_SMALLEST)
    mean_scale = (mean.abs().amax(-1, keepdim=True) / 127).clamp_min(_SMALLEST)
    low = (least / scale - _SLACK).floor().clamp(-128, 127)
    high = (most / scale + _SLACK).ceil().clamp(-128, 127)
    middle = (mean / mean_scale).round().clamp(-127, 127)
    fields = [x.char().view(torch.uint8) for x in (low, high, middle)]
    row = torch.cat((scale.view(torch.uint8), mean_scale.view(torch.uint8), *fields), dim=-1)
    return row.flatten(1)


def decode_nodes(
    nodes: torch.Tensor, num_kv_heads: int, dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [n, Hkv * (3 D + 8)] -> minimum, maximum, mean: float32 [n, Hkv, D]."""
    scales, rest = nodes.unflatten(1, (num_kv_heads, -1)).split([8, 3 * dim], dim=-1)
    scale = scales.contiguous().view(torch.float32)
    low, high, mean = rest.contiguous().view(torch.int8).float().split(dim, dim=-1)
    return low * scale[..., :1], high * scale[..., :1], mean * scale[..., 1:]
