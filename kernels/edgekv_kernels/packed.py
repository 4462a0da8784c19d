"""Packed weights: what the bytes mean, and rows taken out of them.

Knows the layout. Does not know files (the loader repacks) nor how products are computed.
A weight is `scale * quant + offset`, one scale and offset per group along K.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

GROUP4 = 32
_SCALE_TYPES = (torch.float16, torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Packed4:
    """4-bit weights [N, K] in groups of 32 along K.

    quants: uint8 [N, K/2]; in each group of 16 bytes, byte j holds element j (low nibble) and j+16 (high).
    scale, offset: [N, K/32], both float16 or both float32.
    """

    quants: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    shape: tuple[int, int] = field(init=False)
    native_job: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n, half_k = self.quants.shape
        assert self.quants.dtype == torch.uint8, self.quants.dtype
        assert self.scale.dtype in _SCALE_TYPES, self.scale.dtype
        assert self.scale.dtype == self.offset.dtype, (self.scale.dtype, self.offset.dtype)
        assert half_k % 16 == 0, f"K={2 * half_k} is not a multiple of 32"
        assert self.scale.shape == self.offset.shape == (n, half_k // 16), self.scale.shape
        assert self.quants.is_contiguous()
        assert self.scale.is_contiguous()
        assert self.offset.is_contiguous()
        _describe(self, 4, n, 2 * half_k, GROUP4)

    @property
    def num_bytes(self) -> int:
        """Bytes held, scales and offsets included."""
        return self.quants.nbytes + self.scale.nbytes + self.offset.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Packed8:
    """8-bit weights [N, K] in groups of 16 or 32 along K.

    quants: int8 [N, K]. scale [N, K/G] and offset (same shape and type, or None for 0): float16 or float32.
    """

    quants: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None
    shape: tuple[int, int] = field(init=False)
    native_job: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n, k = self.quants.shape
        assert self.quants.dtype == torch.int8, self.quants.dtype
        assert self.scale.dtype in _SCALE_TYPES, self.scale.dtype
        assert self.scale.shape[0] == n, self.scale.shape
        assert self.group in (16, 32), f"group of {self.group}"
        assert self.scale.shape[1] * self.group == k, (self.scale.shape, k)
        assert self.quants.is_contiguous()
        assert self.scale.is_contiguous()
        if self.offset is not None:
            assert self.offset.shape == self.scale.shape
            assert self.offset.dtype == self.scale.dtype
            assert self.offset.is_contiguous()
        _describe(self, 8, n, k, self.group)

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return self.quants.shape[1] // max(self.scale.shape[1], 1)

    @property
    def num_bytes(self) -> int:
        """Bytes held, scales and offsets included."""
        return self.quants.nbytes + self.scale.nbytes + (0 if self.offset is None else self.offset.nbytes)


def _describe(w: Packed4 | Packed8, bits: int, n: int, k: int, group: int) -> None:
    """Set `shape` (N, K) and `native_job`, once: asking the tensors again at every call costs a microsecond.

    The job is what the native kernels are told: bits, addresses, N, K, group, whether scales are float32.
    """
    offset = 0 if w.offset is None else w.offset.data_ptr()
    is_float32 = w.scale.dtype == torch.float32
    job = (bits, w.quants.data_ptr(), w.scale.data_ptr(), offset, n, k, group, is_float32)
    object.__setattr__(w, "shape", (n, k))
    object.__setattr__(w, "native_job", job)


def take_rows4(w: Packed4, ids: torch.Tensor) -> torch.Tensor:
    """Rows `ids` [T] (int64) of `w` as float32 [T, K]: the embedding look-up."""
    packed = w.quants[ids].unflatten(1, (-1, 16))
    quants = torch.cat((packed & 15, packed >> 4), dim=2).float()
    return torch.addcmul(w.offset[ids].float()[..., None], quants, w.scale[ids].float()[..., None]).flatten(1)


def take_rows8(w: Packed8, ids: torch.Tensor) -> torch.Tensor:
    """Rows `ids` [T] (int64) of `w` as float32 [T, K]: the embedding look-up."""
    rows: torch.Tensor = w.quants[ids].unflatten(1, (-1, w.group)).float() * w.scale[ids].float()[..., None]
    if w.offset is not None:
        rows += w.offset[ids].float()[..., None]
    return rows.flatten(1)
