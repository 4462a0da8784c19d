"""Packed weights to a dense matrix: host side. For prefill, where a dense product is faster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.reference import matmul as reference

if TYPE_CHECKING:
    from edgekv_kernels.packed import Packed4, Packed8


def _destination(
    w: Packed4 | Packed8, out: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, bool]:
    """`out`, checked, or a new [N, K] tensor; and whether the native form fills it."""
    if out is None:
        out = torch.empty(w.shape, dtype=dtype, device=w.quants.device)
    assert out.shape == w.shape, (out.shape, w.shape)
    assert out.is_contiguous()
    return out, dispatch.form_of(out) == "native" and out.dtype in (torch.bfloat16, torch.float32)


def unpack4(w: Packed4, out: torch.Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Write `scale * quant + offset` into `out` (bfloat16 or float32 [N, K]) or a new tensor of `dtype`."""
    out, is_native = _destination(w, out, dtype)
    if is_native:
        dispatch.native.unpack(*w.native_job, out.data_ptr(), out.dtype == torch.bfloat16)
    else:
        reference.unpack4(w, out)
    return out


def unpack8(w: Packed8, out: torch.Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Write `scale * quant + offset` into `out` (bfloat16 or float32 [N, K]) or a new tensor of `dtype`."""
    out, is_native = _destination(w, out, dtype)
    if is_native:
        dispatch.native.unpack(*w.native_job, out.data_ptr(), out.dtype == torch.bfloat16)
    else:
        reference.unpack8(w, out)
    return out
