"""Merging partial attention results: host side.

Exact for any cut and any order of the segments, empty ones (lse = -inf, out = 0) included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv_kernels import dispatch
from edgekv_kernels.reference import merging as reference

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


def merge_(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge segment b into segment a in place and return a.

    out: float32 [T, H, D] contiguous; lse: float32 [T, H] contiguous, natural log, -inf for an empty segment.
    """
    assert out_a.shape == out_b.shape, (out_a.shape, out_b.shape)
    assert lse_a.shape == lse_b.shape == out_a.shape[:2], (lse_a.shape, lse_b.shape)
    form = dispatch.form_of(out_a)
    if form == "native":
        num_rows, dim = lse_a.numel(), out_a.shape[2]
        assert out_a.is_contiguous()
        assert out_b.is_contiguous()
        assert lse_a.is_contiguous()
        assert lse_b.is_contiguous()
        dispatch.native.merge(
            out_a.data_ptr(), lse_a.data_ptr(), out_b.data_ptr(), lse_b.data_ptr(), num_rows, dim
        )
    elif form == "triton":
        dispatch.triton_form("merging").merge_(out_a, lse_a, out_b, lse_b)
    else:
        reference.merge_(out_a, lse_a, out_b, lse_b)
    return out_a, lse_a


def merge(segments: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge any number (at least one) of (out, lse) segments into new tensors."""
    iterator = iter(segments)
    first_out, first_lse = next(iterator)
    out, lse = first_out.clone(), first_lse.clone()
    for other_out, other_lse in iterator:
        merge_(out, lse, other_out, other_lse)
    return out, lse
