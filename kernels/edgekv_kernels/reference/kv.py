"""Writing keys and values into pool slots in plain torch."""

from __future__ import annotations

import torch


def append_kv(pool: torch.Tensor, slots: torch.Tensor, offset: int, k: torch.Tensor, v: torch.Tensor) -> None:
    """Token t of k, v [T, Hkv, D] goes to pool[slots[(offset+t)//16], :, :, (offset+t)%16]."""
    positions = torch.arange(offset, offset + k.shape[0], device=pool.device)
    leaves = slots.long()[positions // 16]
    pool[leaves, 0, :, positions % 16] = k.to(pool.dtype)
    pool[leaves, 1, :, positions % 16] = v.to(pool.dtype)
