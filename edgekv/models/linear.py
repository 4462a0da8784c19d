"""One matrix of the model, in the form each phase reads fastest.

Decode multiplies a few rows straight from the packed weights. Prefill multiplies hundreds in bf16: from a
16-bit copy kept beside the packed one (`fast`), or from a scratch matrix that every Linear of the model
shares and refills block by block (`compact`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

import edgekv_kernels as kernels
from edgekv_kernels import Packed4, Packed8

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.models.packing import Packed

FEW_ROWS = 16  # up to here reading packed weights, in float32, costs no more than a 16-bit product


class Scratch:
    """The one bf16 buffer that compact weights are unpacked into."""

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(0, dtype=torch.bfloat16, device=device)

    def matrix(self, num_rows: int, num_columns: int) -> Tensor:
        """An uninitialised bf16 `[num_rows, num_columns]`; the last one handed out is overwritten."""
        if self._buffer.numel() < num_rows * num_columns:
            self._buffer = torch.empty(
                num_rows * num_columns, dtype=torch.bfloat16, device=self._buffer.device
            )
        return self._buffer[: num_rows * num_columns].view(num_rows, num_columns)


class Linear:
    """`y = x W^T + b` with W `[N, K]` packed."""

    def __init__(self, weight: Packed, bias: Tensor | None, scratch: Scratch, *, keep_wide: bool) -> None:
        self.weight = weight
        self.bias = bias
        self._scratch = scratch
        self._wide: Tensor | None = None
        if isinstance(weight, Tensor):
            self._wide = weight
        elif keep_wide:
            self._wide = torch.empty(self.shape, dtype=torch.bfloat16, device=scratch.matrix(0, 0).device)
            _unpack(weight, self._wide)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs N, inputs K)."""
        return weight_shape(self.weight)

    @property
    def num_bytes(self) -> int:
        """Bytes this matrix holds in memory."""
        return weight_bytes(self.weight) + (
            0 if self._wide is None or self._wide is self.weight else self._wide.nbytes
        )

    def __call__(self, x: Tensor) -> Tensor:
        """`x [T, K]` float32 or bf16 -> `[T, N]`: float32 for few rows, bf16 for many."""
        if len(x) <= FEW_ROWS:
            y = self._few(x.float())
            return y if self.bias is None else y.add_(self.bias)
        y = functional.linear(x.to(torch.bfloat16), self._many())
        return y if self.bias is None else y.float().add_(self.bias)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """`total [T, N]` float32 += this matrix's output for `x`: the residual stream, without a copy."""
        if len(x) <= FEW_ROWS and self.bias is None:
            self._few(x.float(), total)
        else:
            total += self(x)

    def precise(self, x: Tensor) -> Tensor:
        """`x [T, K]` float32 -> `[T, N]` float32, however many rows: logits bear no 16-bit rounding."""
        parts = [self._few(part.contiguous()) for part in x.split(FEW_ROWS)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return y if self.bias is None else y.add_(self.bias)

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

    def _many(self) -> Tensor:
        if self._wide is not None:
            return self._wide
        assert not isinstance(self.weight, Tensor)
        out = self._scratch.matrix(*self.shape)
        _unpack(self.weight, out)
        return out


class Stack:
    """Several Linears of one input whose weights could not be joined (their codes differ)."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts = tuple(parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.num_bytes for part in self.parts)

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


def _unpack(weight: Packed4 | Packed8, out: Tensor) -> None:
    if isinstance(weight, Packed4):
        kernels.unpack4(weight, out)
    else:
        kernels.unpack8(weight, out)


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
