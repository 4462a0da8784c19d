"""Which dimension of a turned query is paired with which: one device function for attention and scoring."""

# Triton kernels are typed by what they are launched with.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch


def turn_kind(turns: torch.Tensor | None, style: str) -> int:
    """0: no turns; 1: pairs (i, i + R/2); 2: pairs (2i, 2i + 1)."""
    if turns is None:
        return 0
    return 2 if style == "interleaved" else 1


@triton.jit
def turned_dims(d, half, KIND: tl.constexpr):
    """Per dimension: whether it is turned, its partner, the number of its pair, and the sine's sign for it."""
    turned = d < 2 * half
    if KIND == 2:
        partner = d ^ 1
        pair = d // 2
        sign = tl.where(d % 2 == 0, -1.0, 1.0)
    else:
        partner = tl.where(d < half, d + half, d - half)
        pair = tl.where(d < half, d, d - half)
        sign = tl.where(d < half, -1.0, 1.0)
    return turned, partner, pair, sign
