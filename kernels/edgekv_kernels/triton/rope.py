"""Rotary position embedding: one program a token and head."""

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
def _rope(x, cos, sin, stride, dim, half, step, apart, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < half
    first = x + token * stride + tl.program_id(1) * dim + i * step
    second = first + apart
    a = tl.load(first, mask=inside)
    b = tl.load(second, mask=inside)
    c = tl.load(cos + token * half + i, mask=inside)
    s = tl.load(sin + token * half + i, mask=inside)
    tl.store(first, a * c - b * s, mask=inside)
    tl.store(second, a * s + b * c, mask=inside)


def rope_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, style: str) -> None:
    """Rotate the first R dimensions of x [T, H, D] in place; cos, sin [T, R/2] contiguous."""
    num_tokens, num_heads, dim = x.shape
    half = cos.shape[1]
    step, apart = (2, 1) if style == "interleaved" else (1, half)
    if num_tokens:
        block = triton.next_power_of_2(half)
        _rope[(num_tokens, num_heads)](x, cos, sin, x.stride(0), dim, half, step, apart, BLOCK=block)
