"""Packed weights to a dense matrix: host side. For prefill, where a dense product is faster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.reference import matmul as reference

if TYPE_CHECKING:
    from edgekv_kernels.packed import Packed4, Packed8


def unpack4(w: Packed4, out: torch.Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """`scale * quant + offset` into `out` (bfloat16 or float32 [N, K] contiguous) or a new tensor of `dtype`."""
    if out is None:
        out = torch.empty(w.shape, dtype=dtype, device=w.quants.device)
    reference.unpack4(w, out)
    return out


def unpack8(w: Packed8, out: torch.Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """`scale * quant + offset` into `out` (bfloat16 or float32 [N, K] contiguous) or a new tensor of `dtype`."""
    if out is None:
        out = torch.empty(w.shape, dtype=dtype, device=w.quants.device)
    reference.unpack8(w, out)
    return out
