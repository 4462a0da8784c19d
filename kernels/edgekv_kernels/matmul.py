"""Products of few rows with packed or 16-bit weights: host side.

Exact dequantized arithmetic with float32 accumulation: activations are never rounded to 8 bits.
For many rows unpack once (`unpack4`, `unpack8`) and use torch's own bfloat16 product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.reference import matmul as reference

if TYPE_CHECKING:
    from edgekv_kernels.packed import Packed4, Packed8


def matmul4(
    x: torch.Tensor, w: Packed4, out: torch.Tensor | None = None, accumulate: bool = False
) -> torch.Tensor:
    """`x @ w.T`: x float32 [M, K] contiguous, w [N, K] -> float32 [M, N]; made for M <= 16.

    Written to `out` when given; with `accumulate` added to it (the residual stream).
    """
    if out is None:
        out = torch.empty((x.shape[0], w.shape[0]), device=x.device)
        accumulate = False
    reference.matmul4(x, w, out, accumulate)
    return out


def matmul8(
    x: torch.Tensor, w: Packed8, out: torch.Tensor | None = None, accumulate: bool = False
) -> torch.Tensor:
    """`x @ w.T`: x float32 [M, K] contiguous, w [N, K] -> float32 [M, N]; made for M <= 16.

    Written to `out` when given; with `accumulate` added to it (the residual stream).
    """
    if out is None:
        out = torch.empty((x.shape[0], w.shape[0]), device=x.device)
        accumulate = False
    reference.matmul8(x, w, out, accumulate)
    return out


def matmul16(
    x: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None, accumulate: bool = False
) -> torch.Tensor:
    """`x @ w.T`: x float32 [M, K] contiguous, w bfloat16 [N, K] contiguous -> float32 [M, N]; for M <= 16.

    Written to `out` when given; with `accumulate` added to it (the residual stream).
    """
    if out is None:
        out = torch.empty((x.shape[0], w.shape[0]), device=x.device)
        accumulate = False
    reference.matmul16(x, w, out, accumulate)
    return out
