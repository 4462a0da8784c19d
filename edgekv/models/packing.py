"""ggml blocks -> the kernels' packed forms, without requantizing where the block is an affine 4- or 8-bit code.

Q4_0, Q4_1, Q4_K keep their very nibbles; Q8_0, Q6_K, Q5_0, Q5_1, Q5_K their very integers, with the
scale (and offset) of each group of 16 or 32. Other types below 16 bits are decoded by the `gguf` package and
coded anew as 8-bit groups of 16 (their own steps are far coarser); 16- and 32-bit types become bf16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from edgekv_kernels import Packed4, Packed8

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Packed = Packed4 | Packed8 | Tensor

_WIDE = {
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.F64,
}
_ROWS_AT_ONCE = 1 << 22  # values decoded at a time, so that a large tensor never exists in float32 as a whole


def pack(data: Bytes, ggml_type: int, num_rows: int, num_columns: int) -> Packed:
    """Weights `[num_rows, num_columns]` stored as `ggml_type` in `data`, as the kernels read them."""
    kind = GGMLQuantizationType(ggml_type)
    maker = _AFFINE.get(kind)
    if maker is not None:
        block_values, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = data.reshape(num_rows, num_columns // block_values, block_bytes)
        return maker(blocks)
    if kind in _WIDE:
        return decode(data, ggml_type, num_rows, num_columns, torch.bfloat16)
    return _coded_anew(decode(data, ggml_type, num_rows, num_columns, torch.float32))


def decode(data: Bytes, ggml_type: int, num_rows: int, num_columns: int, dtype: torch.dtype) -> Tensor:
    """The values themselves, `[num_rows, num_columns]`, decoded in slices of rows."""
    kind = GGMLQuantizationType(ggml_type)
    out = torch.empty(num_rows, num_columns, dtype=dtype)
    rows = data.reshape(num_rows, -1)
    step = max(1, _ROWS_AT_ONCE // num_columns)
    for start in range(0, num_rows, step):
        part = np.ascontiguousarray(rows[start : start + step])
        values = dequantize(part, kind).astype(
            np.float32
        )  # a copy: F32 comes as a read-only view of the file
        out[start : start + step] = torch.from_numpy(values.reshape(-1, num_columns))
    return out


def _half(blocks: Bytes, at: int) -> NDArray[np.float16]:
    """The fp16 at byte `at` of each block."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0]


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _q4_0(blocks: Bytes) -> Packed4:
    scale = _half(blocks, 0)
    offset = scale.astype(np.float32) * -8  # exact in fp16 too, but for the largest scales
    keep_half = bool((np.abs(offset) <= np.finfo(np.float16).max).all())
    kind = np.float16 if keep_half else np.float32
    quants = blocks[..., 2:].reshape(len(blocks), -1)
    return Packed4(_tensor(quants), _tensor(scale.astype(kind)), _tensor(offset.astype(kind)))


def _q4_1(blocks: Bytes) -> Packed4:
    quants = blocks[..., 4:].reshape(len(blocks), -1)
    return Packed4(_tensor(quants), _tensor(_half(blocks, 0)), _tensor(_half(blocks, 2)))


def _six_bit_pairs(packed: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The eight 6-bit scales and mins that the K-quants fold into 12 bytes."""
    low, mid, high = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    offset = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=-1)
    return scale.astype(np.float32), offset.astype(np.float32)


def _k_groups(blocks: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and offset of the 8 groups of 32 in each Q4_K or Q5_K block, `[rows, blocks * 8]`."""
    scale, offset = _six_bit_pairs(blocks[..., 4:16])
    scale = scale * _half(blocks, 0).astype(np.float32)[..., None]
    offset = offset * -_half(blocks, 2).astype(np.float32)[..., None]
    return scale.reshape(len(blocks), -1), offset.reshape(len(blocks), -1)


def _q4_k(blocks: Bytes) -> Packed4:
    scale, offset = _k_groups(blocks)
    pairs = blocks[..., 16:].reshape(len(blocks), -1, 32)  # low nibbles: one group of 32, high: the next
    groups = np.stack([pairs & 15, pairs >> 4], axis=2)
    quants = groups[..., :16] | (groups[..., 16:] << 4)
    return Packed4(_tensor(quants.reshape(len(blocks), -1)), _tensor(scale), _tensor(offset))


def _q5_k(blocks: Bytes) -> Packed8:
    scale, offset = _k_groups(blocks)
    high = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    pairs = blocks[..., 48:].reshape(*blocks.shape[:2], 4, 32)
    low = np.stack([pairs & 15, pairs >> 4], axis=3).reshape(high.shape)
    quants = (low | (high << 4)).astype(np.int8).reshape(len(blocks), -1)
    return Packed8(_tensor(quants), _tensor(scale), _tensor(offset))


def _q5_bits(bits: Bytes, nibbles: Bytes) -> NDArray[np.uint8]:
    """The 32 five-bit codes of a Q5_0 or Q5_1 block: 4 bytes of fifth bits, 16 bytes of nibbles."""
    fifth = np.unpackbits(bits, axis=-1, bitorder="little")
    codes: Bytes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1) | (fifth << 4)
    return codes


def _q5_0(blocks: Bytes) -> Packed8:
    codes = _q5_bits(blocks[..., 2:6], blocks[..., 6:]).astype(np.int8) - np.int8(16)
    return Packed8(_tensor(codes.reshape(len(blocks), -1)), _tensor(_half(blocks, 0)), None)


def _q5_1(blocks: Bytes) -> Packed8:
    codes = _q5_bits(blocks[..., 4:8], blocks[..., 8:]).astype(np.int8)
    return Packed8(
        _tensor(codes.reshape(len(blocks), -1)), _tensor(_half(blocks, 0)), _tensor(_half(blocks, 2))
    )


def _q8_0(blocks: Bytes) -> Packed8:
    quants = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    return Packed8(_tensor(quants.reshape(len(blocks), -1)), _tensor(_half(blocks, 0)), None)


def _q6_k(blocks: Bytes) -> Packed8:
    halves = blocks[..., :128].reshape(*blocks.shape[:2], 2, 2, 32)  # half of 128 values, pair, lane
    low = np.stack([halves & 15, halves >> 4], axis=3).reshape(*blocks.shape[:2], 2, 4, 32)
    tops = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32)
    high = tops >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & 3
    codes = (low | (high << 4)).astype(np.int8) - np.int8(32)
    scale = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).astype(np.float32)
    scale = scale * _half(blocks, 208).astype(np.float32)[..., None]
    return Packed8(_tensor(codes.reshape(len(blocks), -1)), _tensor(scale.reshape(len(blocks), -1)), None)


def _coded_anew(values: Tensor) -> Packed8:
    """8-bit groups of 16 by their largest magnitude: error at most 1/254 of it."""
    groups = values.view(len(values), -1, 16)
    scale = groups.abs().amax(dim=-1, keepdim=True) / 127
    codes = (groups / scale.clamp(min=1e-30)).round().to(torch.int8)
    return Packed8(codes.view(values.shape), scale[..., 0].contiguous(), None)


_AFFINE: dict[GGMLQuantizationType, Callable[[Bytes], Packed4 | Packed8]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
    GGMLQuantizationType.Q8_0: _q8_0,
}
