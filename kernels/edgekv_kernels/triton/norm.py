"""RMSNorm: one program a row, the row in registers."""

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
def _rms_norm(x, weight, out, cols, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < cols
    values = tl.load(x + row * cols + i, mask=inside, other=0.0)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / cols + eps)
    weights = tl.load(weight + i, mask=inside, other=0.0)
    tl.store(out + row * cols + i, (values * scale * weights).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """Write x / sqrt(mean(x^2) + eps) * weight into `out`; x [..., C] contiguous, weight [C]."""
    cols = x.shape[-1]
    rows = x.numel() // cols
    if rows:
        _rms_norm[(rows,)](x, weight, out, cols, eps, BLOCK=triton.next_power_of_2(cols))
