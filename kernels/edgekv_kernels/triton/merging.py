"""Merging partial attention results: one program a query and head."""

# Triton kernels are typed by what they are launched with.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch


@triton.jit
def _merge(out_a, lse_a, out_b, lse_b, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < dim
    a = tl.load(lse_a + row)
    b = tl.load(lse_b + row)
    top = tl.maximum(a, b)
    top_or_zero = tl.where(
        top == float("-inf"), 0.0, top
    )  # two empty segments: weights exp(-inf) = 0, not NaN
    weight_a = tl.exp(a - top_or_zero)
    weight_b = tl.exp(b - top_or_zero)
    total = weight_a + weight_b
    share = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
    first = tl.load(out_a + row * dim + i, mask=inside)
    second = tl.load(out_b + row * dim + i, mask=inside)
    tl.store(out_a + row * dim + i, (first * weight_a + second * weight_b) * share, mask=inside)
    merged = tl.where(total > 0, top_or_zero + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))
    tl.store(lse_a + row, merged)


def merge_(out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor) -> None:
    """Merge (out_b, lse_b) into (out_a, lse_a) in place; out [T, H, D], lse [T, H], all contiguous."""
    dim = out_a.shape[2]
    if lse_a.numel():
        _merge[(lse_a.numel(),)](out_a, lse_a, out_b, lse_b, dim, BLOCK=triton.next_power_of_2(dim))
