"""16-bit weights for prefill, and their product with many rows: host side.

Factors are bfloat16, sums and outputs float32: rounding the outputs to 16 bits as well, as torch's CPU product
does, was the largest error of the whole decoder (docs/measurements.md).
A matrix lies in the order its form reads: panels for the native form, rows for all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from edgekv_kernels import dispatch

PANEL = 16


@dataclass(frozen=True, slots=True, eq=False)
class Wide:
    """bfloat16 weights of shape (N, K): `data` is [N/16, K/2, 16, 2] where `in_panels`, else [N, K]."""

    data: torch.Tensor
    shape: tuple[int, int]
    in_panels: bool


def takes_panels(num_rows: int, num_columns: int, device: torch.device) -> bool:
    """Whether the native product runs here on a matrix of this shape (N, K)."""
    fits = num_rows % PANEL == 0 and num_columns % 2 == 0
    native = dispatch.native
    return fits and device.type == "cpu" and dispatch.cpu_form() == "native" and bool(native.has_bf16())


def make_wide(weight: torch.Tensor, out: torch.Tensor | None = None) -> Wide:
    """Arrange bfloat16 `weight` [N, K]; in `out` (bfloat16, N * K values) when given and needed."""
    num_rows, num_columns = weight.shape
    assert weight.dtype == torch.bfloat16, weight.dtype
    assert weight.is_contiguous()
    if not takes_panels(num_rows, num_columns, weight.device):
        return Wide(weight, (num_rows, num_columns), in_panels=False)
    panels = torch.empty_like(weight) if out is None else out
    assert panels.numel() >= weight.numel()
    dispatch.native.panels(weight.data_ptr(), panels.data_ptr(), num_rows, num_columns)
    return Wide(panels, (num_rows, num_columns), in_panels=True)


def matmul_wide(
    x: torch.Tensor, w: Wide, out: torch.Tensor | None = None, *, accumulate: bool = False
) -> torch.Tensor:
    """`x @ w.T`: x [M, K], rounded to bfloat16 -> float32 [M, N]; with `accumulate` added to `out`."""
    x = x.to(torch.bfloat16).contiguous()
    num_rows, num_columns = w.shape
    assert x.shape[1] == num_columns, (x.shape, w.shape)
    if w.in_panels:
        if out is None:
            out, accumulate = torch.empty((len(x), num_rows)), False
        assert out.is_contiguous()
        assert out.dtype == torch.float32
        dispatch.native.product(
            x.data_ptr(), w.data.data_ptr(), out.data_ptr(), len(x), num_rows, num_columns, accumulate
        )
        return out
    product = _plain(x, w.data)
    if out is None:
        return product
    return out.add_(product) if accumulate else out.copy_(product)


def _plain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        return torch.mm(x, w.t(), out_dtype=torch.float32)
    return functional.linear(x.float(), w.float())
