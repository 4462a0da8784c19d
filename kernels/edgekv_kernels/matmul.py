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


def _destination(
    x: torch.Tensor, shape: tuple[int, int], out: torch.Tensor | None, accumulate: bool
) -> torch.Tensor:
    """Check x against the weights' shape (N, K); `out`, checked, or a new [M, N] tensor."""
    m, k = x.shape
    n, wanted = shape
    assert k == wanted, (x.shape, shape)
    if out is None:
        assert not accumulate, "nothing to accumulate into: pass out"
        return torch.empty(m, n) if x.is_cpu else torch.empty(m, n, device=x.device)
    assert out.shape == (m, n), (out.shape, x.shape, shape)
    assert out.is_contiguous()
    return out


def matmul4(
    x: torch.Tensor, w: Packed4, out: torch.Tensor | None = None, accumulate: bool = False
) -> torch.Tensor:
    """`x @ w.T`: x float32 [M, K] contiguous, w [N, K] -> float32 [M, N]; made for M <= 16.

    Written to `out` when given; with `accumulate` added to it (the residual stream).
    """
    out = _destination(x, w.shape, out, accumulate)
    form = dispatch.form_of(x)
    if form == "native":
        assert x.is_contiguous()
        dispatch.native.matmul(*w.native_job, x.data_ptr(), out.data_ptr(), len(x), accumulate)
    elif form == "triton":
        dispatch.triton_form("matmul").matmul4(x, w, out, accumulate)
    else:
        reference.matmul4(x, w, out, accumulate)
    return out


def matmul8(
    x: torch.Tensor, w: Packed8, out: torch.Tensor | None = None, accumulate: bool = False
) -> torch.Tensor:
    """`x @ w.T`: x float32 [M, K] contiguous, w [N, K] -> float32 [M, N]; made for M <= 16.

    Written to `out` when given; with `accumulate` added to it (the residual stream).
    """
    out = _destination(x, w.shape, out, accumulate)
    form = dispatch.form_of(x)
    if form == "native":
        assert x.is_contiguous()
        dispatch.native.matmul(*w.native_job, x.data_ptr(), out.data_ptr(), len(x), accumulate)
    elif form == "triton":
        dispatch.triton_form("matmul").matmul8(x, w, out, accumulate)
    else:
        reference.matmul8(x, w, out, accumulate)
    return out


def matmul16(
    x: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None, accumulate: bool = False
) -> torch.Tensor:
    """`x @ w.T`: x float32 [M, K] contiguous, w bfloat16 [N, K] contiguous -> float32 [M, N]; for M <= 16.

    Written to `out` when given; with `accumulate` added to it (the residual stream).
    """
    num_rows, num_columns = w.shape
    out = _destination(x, (num_rows, num_columns), out, accumulate)
    form = dispatch.form_of(x)
    if form == "native":
        assert x.is_contiguous()
        assert w.is_contiguous()
        assert w.dtype == torch.bfloat16
        dispatch.native.matmul(
            16,
            w.data_ptr(),
            0,
            0,
            num_rows,
            num_columns,
            32,
            False,
            x.data_ptr(),
            out.data_ptr(),
            len(x),
            accumulate,
        )
    elif form == "triton":
        dispatch.triton_form("matmul").matmul16(x, w, out, accumulate)
    else:
        reference.matmul16(x, w, out, accumulate)
    return out
