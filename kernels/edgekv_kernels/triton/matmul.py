"""Products of few rows with packed weights: a program owns some output columns and one row of x.

Every program dequantizes as it goes; for more than a few rows `unpack` and torch's own product win.
"""

# Triton kernels are typed by what they are launched with.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from edgekv_kernels.packed import Packed4, Packed8

_ROWS = 16  # rows of w a program
_GROUPS = 8  # groups of 32 taken at a time
_FEW = 16  # rows of x beyond which a dense product wins


@triton.jit
def _matmul4(x, quants, scale, offset, out, n, k, add, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1)
    groups = k // 32
    byte = tl.arange(0, 16)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for first in range(0, groups, GROUPS):
        g = first + tl.arange(0, GROUPS)
        inside = (rows[:, None] < n) & (g[None, :] < groups)
        at = rows[:, None].to(tl.int64) * groups + g[None, :]
        d = tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(offset + at, mask=inside, other=0.0).to(tl.float32)
        packed = tl.load(quants + at[:, :, None] * 16 + byte[None, None, :], mask=inside[:, :, None], other=0)
        columns = g[:, None] * 32 + byte[None, :]
        low_x = tl.load(x + m * k + columns, mask=columns < k, other=0.0)
        high_x = tl.load(x + m * k + columns + 16, mask=columns + 16 < k, other=0.0)
        low = (packed & 15).to(tl.float32) * low_x[None, :, :]
        high = (packed >> 4).to(tl.float32) * high_x[None, :, :]
        sums = tl.sum(low_x + high_x, 1)
        total += tl.sum(d * tl.sum(low + high, 2) + b * sums[None, :], 1)
    to = out + m * n + rows
    if add:
        total += tl.load(to, mask=rows < n, other=0.0)
    tl.store(to, total, mask=rows < n)


@triton.jit
def _matmul8(
    x,
    quants,
    scale,
    offset,
    out,
    n,
    k,
    add,
    HAS_OFFSET: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1)
    groups = k // GROUP
    element = tl.arange(0, GROUP)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for first in range(0, groups, GROUPS):
        g = first + tl.arange(0, GROUPS)
        inside = (rows[:, None] < n) & (g[None, :] < groups)
        at = rows[:, None].to(tl.int64) * groups + g[None, :]
        d = tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
        q = tl.load(
            quants + at[:, :, None] * GROUP + element[None, None, :], mask=inside[:, :, None], other=0
        )
        columns = g[:, None] * GROUP + element[None, :]
        values = tl.load(x + m * k + columns, mask=columns < k, other=0.0)
        total += tl.sum(d * tl.sum(q.to(tl.float32) * values[None, :, :], 2), 1)
        if HAS_OFFSET:
            b = tl.load(offset + at, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(b * tl.sum(values, 1)[None, :], 1)
    to = out + m * n + rows
    if add:
        total += tl.load(to, mask=rows < n, other=0.0)
    tl.store(to, total, mask=rows < n)


@triton.jit
def _matmul16(x, w, out, n, k, add, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for first in range(0, k, BLOCK):
        i = first + tl.arange(0, BLOCK)
        inside = (rows[:, None] < n) & (i[None, :] < k)
        weights = tl.load(w + rows[:, None].to(tl.int64) * k + i[None, :], mask=inside, other=0.0)
        values = tl.load(x + m * k + i, mask=i < k, other=0.0)
        total += tl.sum(weights.to(tl.float32) * values[None, :], 1)
    to = out + m * n + rows
    if add:
        total += tl.load(to, mask=rows < n, other=0.0)
    tl.store(to, total, mask=rows < n)


def _dense(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, accumulate: bool) -> None:
    """Many rows: torch's bfloat16 product, as prefill uses it."""
    product = torch.nn.functional.linear(x.bfloat16(), w)
    if accumulate:
        out += product
    else:
        out.copy_(product)


def matmul4(x: torch.Tensor, w: Packed4, out: torch.Tensor, accumulate: bool) -> None:
    """Write (or add) x @ w.T into `out` [M, N]; x float32 [M, K]."""
    from edgekv_kernels.unpack import unpack4  # noqa: PLC0415 - only many rows need it

    n, k = w.shape
    if x.shape[0] > _FEW:
        _dense(x, unpack4(w), out, accumulate)
        return
    grid = (triton.cdiv(n, _ROWS), x.shape[0])
    _matmul4[grid](x, w.quants, w.scale, w.offset, out, n, k, accumulate, ROWS=_ROWS, GROUPS=_GROUPS)


def matmul8(x: torch.Tensor, w: Packed8, out: torch.Tensor, accumulate: bool) -> None:
    """Write (or add) x @ w.T into `out` [M, N]; x float32 [M, K]."""
    from edgekv_kernels.unpack import unpack8  # noqa: PLC0415 - only many rows need it

    n, k = w.shape
    if x.shape[0] > _FEW:
        _dense(x, unpack8(w), out, accumulate)
        return
    offset = w.scale if w.offset is None else w.offset  # a pointer that is not read
    _matmul8[triton.cdiv(n, _ROWS), x.shape[0]](
        x,
        w.quants,
        w.scale,
        offset,
        out,
        n,
        k,
        accumulate,
        HAS_OFFSET=w.offset is not None,
        GROUP=w.group,
        ROWS=_ROWS,
        GROUPS=_GROUPS,
    )


def matmul16(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, accumulate: bool) -> None:
    """Write (or add) x @ w.T into `out` [M, N]; x float32 [M, K], w bfloat16 [N, K]."""
    n, k = w.shape
    if x.shape[0] > _FEW:
        _dense(x, w, out, accumulate)
        return
    _matmul16[triton.cdiv(n, _ROWS), x.shape[0]](x, w, out, n, k, accumulate, ROWS=_ROWS, BLOCK=256)
