"""Packed weights to a dense matrix: host side. For prefill, where a dense product is faster."""

from __future__ import annotations

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.packed import Packed4, Packed8, take_rows4, take_rows8
from edgekv_kernels.reference import matmul as reference


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


def take_row(w: Packed4 | Packed8, row: int) -> torch.Tensor:
    """One row of `w` as float32 [1, K]: every decoded token's embedding, in one call."""
    assert 0 <= row < w.shape[0], row
    if dispatch.form_of(w.quants) != "native":
        rows = torch.tensor([row], device=w.quants.device)
        return take_rows4(w, rows) if isinstance(w, Packed4) else take_rows8(w, rows)
    bits, quants, scale, offset, _, k, group, is_float32 = w.native_job
    of_scales = row * (k // group) * (4 if is_float32 else 2)  # bytes before the row's
    out = torch.empty(1, k)
    dispatch.native.unpack(
        bits,
        quants + row * k * bits // 8,
        scale + of_scales,
        offset and offset + of_scales,
        1,
        k,
        group,
        is_float32,
        out.data_ptr(),
        False,
    )
    return out
