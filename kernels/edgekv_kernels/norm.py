"""RMSNorm: host side. Knows shapes and forms; the arithmetic is in the forms."""

from __future__ import annotations

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.reference import norm as reference


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension.

    x: float32 [..., C] (copied first unless contiguous; per-head norms pass [T, H, D]); weight: float32 [C].
    Returns `out` (may be x itself) or a new tensor of `out_dtype` (float32 or bfloat16) and x's shape.
    """
    x = x.contiguous()
    if out is None:
        out = torch.empty_like(x, dtype=out_dtype)
    form = dispatch.form_of(x)
    if form == "native":
        cols = x.shape[-1]
        assert weight.shape == (cols,)
        assert out.is_contiguous()
        dispatch.native.rms_norm(
            x.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            x.numel() // cols,
            cols,
            eps,
            out.dtype == torch.bfloat16,
        )
    elif form == "triton":
        dispatch.triton_form("norm").rms_norm(x, weight, eps, out)
    else:
        reference.rms_norm(x, weight, eps, out)
    return out
