"""Rotary position embedding: host side. Frequencies, scaling and positions are the caller's business."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgekv_kernels import dispatch
from edgekv_kernels.reference import rope as reference

if TYPE_CHECKING:
    import torch

Style = Literal["interleaved", "split"]


def rope_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, style: Style) -> torch.Tensor:
    """Rotate the first R of D dimensions of every head in place and return x.

    x: float32 [T, H, D], heads contiguous (a slice of fused q, k, v rows will do); cos, sin: float32
    [T, R/2] contiguous. "interleaved" pairs (2i, 2i+1), "split" pairs (i, i + R/2).
    """
    num_tokens, num_heads, dim = x.shape
    half = cos.shape[1]
    assert cos.shape == sin.shape == (num_tokens, half), (cos.shape, sin.shape, x.shape)
    assert 2 * half <= dim, (half, dim)
    form = dispatch.form_of(x)
    if form == "native":
        row, head, step = x.stride()
        assert step == 1, x.stride()
        assert head == dim, x.stride()
        assert cos.is_contiguous()
        assert sin.is_contiguous()
        dispatch.native.rope(
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            num_tokens,
            num_heads,
            dim,
            row,
            half,
            style == "interleaved",
        )
    elif form == "triton":
        dispatch.triton_form("rope").rope_(x, cos, sin, style)
    else:
        reference.rope_(x, cos, sin, style)
    return x
