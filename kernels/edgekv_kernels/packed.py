"""Packed weights: what the bytes mean, and rows taken out of them.

Knows the layout. Does not know files (the loader repacks) nor how products are computed.
A weight is `scale * quant + offset`, one scale and offset per group along K.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the weights."""
        return self.quants.shape[0], 2 * self.quants.shape[1]

    def job(self) -> tuple[int, ...]:
        """What the native kernels are told: bits, addresses, N, K, group, whether scales are float32."""
        n, half_k = self.quants.shape
        return (
            4,
            self.quants.data_ptr(),
            self.scale.data_ptr(),
            self.offset.data_ptr(),
            n,
            2 * half_k,
            GROUP4,
            self.scale.dtype == torch.float32,
        )

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

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return self.quants.shape[1] // max(self.scale.shape[1], 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the weights."""
        return self.quants.shape[0], self.quants.shape[1]

    def job(self) -> tuple[int, ...]:
        """What the native kernels are told: bits, addresses, N, K, group, whether scales are float32."""
        n, k = self.quants.shape
        return (
            8,
            self.quants.data_ptr(),
            self.scale.data_ptr(),
            0 if self.offset is None else self.offset.data_ptr(),
            n,
            k,
            self.group,
            self.scale.dtype == torch.float32,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes held, scales and offsets included."""
        return self.quants.nbytes + self.scale.nbytes + (0 if self.offset is None else self.offset.nbytes)


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
