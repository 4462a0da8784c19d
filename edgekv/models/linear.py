"""One matrix of the model, in the form each phase reads fastest.

Decode multiplies a few rows straight from the packed weights. Prefill multiplies hundreds with bf16 factors:
from a 16-bit copy kept beside the packed one (`fast`), or from scratch memory that every Linear of the model
shares and refills block by block (`compact`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import edgekv_kernels as kernels
from edgekv_kernels import Matrix, Packed4, Packed8, Wide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.models.packing import Packed

FEW_ROWS = 8  # up to here products from packed weights, all in float32, cost little more than 16-bit ones


class Scratch:
    """The bf16 buffers that compact weights are unpacked and arranged in; one pair for the whole model."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers = [torch.empty(0, dtype=torch.bfloat16, device=device) for _ in range(2)]

    def wide(self, weight: Packed) -> Wide:
        """`weight` as prefill takes it; the one handed out before is overwritten."""
        num_rows, num_columns = weight_shape(weight)
        size = num_rows * num_columns
        if self._buffers[0].numel() < size:
            self._buffers = [torch.empty(size, dtype=torch.bfloat16, device=self.device) for _ in range(2)]
        unpacked, arranged = self._buffers
        return _widened(weight, unpacked[:size].view(num_rows, num_columns), arranged)


class Linear:
    """`y = x W^T + b` with W `[N, K]` packed."""

    def __init__(self, weight: Packed, bias: Tensor | None, scratch: Scratch, *, keep_wide: bool) -> None:
        self.weight = weight
        self.bias = bias
        self._scratch = scratch
        self._wide: Wide | None = None
        if keep_wide:
            unpacked = torch.empty(self.shape, dtype=torch.bfloat16, device=scratch.device)
            self._wide = _widened(weight, unpacked, None)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """What the kernels of a single token take: here one."""
        return (Matrix(self.weight, self.bias),)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs N, inputs K)."""
        return weight_shape(self.weight)

    @property
    def num_bytes(self) -> int:
        """Bytes this matrix holds in memory."""
        kept = self._wide is not None and self._wide.data is not self.weight
        return weight_bytes(self.weight) + (2 * self.shape[0] * self.shape[1] if kept else 0)

    def __call__(self, x: Tensor) -> Tensor:
        """`x [T, K]` float32 or bf16 -> `[T, N]` float32; for many rows the factors are rounded to bf16."""
        y = self._few(x.float()) if len(x) <= FEW_ROWS else kernels.matmul_wide(x, self._many())
        return y if self.bias is None else y.add_(self.bias)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """`total [T, N]` float32 += this matrix's output for `x`: the residual stream, without a copy."""
        if len(x) <= FEW_ROWS:
            self._few(x.float(), total)
        else:
            kernels.matmul_wide(x, self._many(), total, accumulate=True)
        if self.bias is not None:
            total += self.bias

    def precise(self, x: Tensor) -> Tensor:
        """`x [T, K]` float32 -> `[T, N]` float32, however many rows: logits bear no 16-bit rounding."""
        if len(x) <= FEW_ROWS:
            y = self._few(x)
        else:
            y = torch.cat([self._few(part.contiguous()) for part in x.split(FEW_ROWS)])
        return y if self.bias is None else y.add_(self.bias)

    def row(self, token_id: int) -> Tensor:
        """One row of W: `[1, K]` float32. Every decoded token needs one."""
        if isinstance(self.weight, Tensor):
            return self.weight[token_id : token_id + 1].float()
        return kernels.take_row(self.weight, token_id)

    def rows(self, token_ids: Tensor) -> Tensor:
        """Rows of W as an embedding: `[T, K]` float32."""
        if isinstance(self.weight, Packed4):
            return kernels.take_rows4(self.weight, token_ids)
        if isinstance(self.weight, Packed8):
            return kernels.take_rows8(self.weight, token_ids)
        return self.weight[token_ids].float()

    def _few(self, x: Tensor, total: Tensor | None = None) -> Tensor:
        """The product in float32, added to `total` where it is given."""
        add = total is not None
        if isinstance(self.weight, Packed4):
            return kernels.matmul4(x, self.weight, total, add)
        if isinstance(self.weight, Packed8):
            return kernels.matmul8(x, self.weight, total, add)
        return kernels.matmul16(x, self.weight, total, add)

    def _many(self) -> Wide:
        return self._scratch.wide(self.weight) if self._wide is None else self._wide


class Stack:
    """Several Linears of one input whose weights could not be joined (their codes differ)."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts = tuple(parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """What the kernels of a single token take: one of each part."""
        return tuple(matrix for part in self.parts for matrix in part.matrices)

    def __call__(self, x: Tensor) -> Tensor:
        """The parts' outputs side by side."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


def join(weights: Sequence[Packed]) -> Packed | None:
    """One weight with the rows of all, or None when their codes differ."""
    first = weights[0]
    if isinstance(first, Tensor):
        return torch.cat([w for w in weights if isinstance(w, Tensor)]) if _same(weights) else None
    if not _same(weights):
        return None
    packed = [w for w in weights if not isinstance(w, Tensor)]
    offsets = [w.offset for w in packed if w.offset is not None]
    return type(first)(
        torch.cat([w.quants for w in packed]),
        torch.cat([w.scale for w in packed]),
        torch.cat(offsets) if offsets else None,  # type: ignore[arg-type]  # Packed4 always has one
    )


def place(weight: Packed, device: torch.device) -> Packed:
    """The same weight on `device`."""
    if isinstance(weight, Tensor):
        return weight.to(device)
    if isinstance(weight, Packed4):
        return Packed4(weight.quants.to(device), weight.scale.to(device), weight.offset.to(device))
    offset = None if weight.offset is None else weight.offset.to(device)
    return Packed8(weight.quants.to(device), weight.scale.to(device), offset)


def _code(weight: Packed) -> tuple[object, ...]:
    if isinstance(weight, Tensor):
        return (weight.dtype,)
    group = weight.quants.shape[1] / weight.scale.shape[1]
    offset = None if weight.offset is None else weight.offset.dtype
    return (type(weight), weight.scale.dtype, group, offset)


def _same(weights: Sequence[Packed]) -> bool:
    return len({_code(w) for w in weights}) == 1


def _widened(weight: Packed, unpacked: Tensor, arranged: Tensor | None) -> Wide:
    """`weight` unpacked into `unpacked` (bf16 weights need not be), arranged in `arranged` or new memory."""
    if isinstance(weight, Packed4):
        kernels.unpack4(weight, unpacked)
    elif isinstance(weight, Packed8):
        kernels.unpack8(weight, unpacked)
    else:
        unpacked = weight
    return kernels.make_wide(unpacked, arranged)


def weight_shape(weight: Packed) -> tuple[int, int]:
    """(N, K) of any packed form."""
    if isinstance(weight, Tensor):
        return weight.shape[0], weight.shape[1]
    per_byte = 2 if isinstance(weight, Packed4) else 1
    return weight.quants.shape[0], weight.quants.shape[1] * per_byte


def weight_bytes(weight: Packed) -> int:
    """Bytes of any packed form."""
    if isinstance(weight, Tensor):
        return weight.nbytes
    return weight.quants.nbytes + weight.scale.nbytes + (0 if weight.offset is None else weight.offset.nbytes)
