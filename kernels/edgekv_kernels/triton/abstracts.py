"""Low-bit keys of leaves: one program a leaf and kv head."""

# Triton kernels are typed by what they are launched with.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

_LEAF = 16


@triton.jit
def _low_scale(least):
    return tl.maximum(tl.max(tl.abs(least), 0) / 127.0, 1e-30)


@triton.jit
def _step_scale(span):
    return tl.maximum(tl.max(span, 0) / (3 * 254.9), 1e-30)


@triton.jit
def _low(least, scale):
    return tl.minimum(tl.maximum(tl.floor(least / scale - 1e-4), -128.0), 127.0)


@triton.jit
def _step(span, scale):
    return tl.minimum(tl.maximum(tl.ceil(span / (3 * scale) + 1e-4), 1.0), 255.0)


@triton.jit
def _pack(pool, slots, scales, out, kv_heads, dim, LEAF: tl.constexpr, BLOCK: tl.constexpr):
    leaf = tl.program_id(0)
    head = tl.program_id(1)
    slot = tl.load(slots + leaf).to(tl.int64)
    d = tl.arange(0, BLOCK)
    t = tl.arange(0, LEAF)
    inside = d < dim
    keys = pool + slot * 2 * kv_heads * LEAF * dim + head * LEAF * dim
    key = tl.load(keys + t[:, None] * dim + d[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
    least, most = tl.min(key, 0), tl.max(key, 0)
    low_scale = _low_scale(least)
    low = _low(least, low_scale)
    span = tl.where(inside, most - low * low_scale, 0.0)
    step_scale = _step_scale(span)
    place = leaf * kv_heads + head
    tl.store(scales + place * 2, low_scale)
    tl.store(scales + place * 2 + 1, step_scale)
    row = out + place.to(tl.int64) * (6 * dim + 8)
    tl.store(row + 8 + d, low.to(tl.int32).to(tl.uint8), mask=inside)
    tl.store(row + 8 + dim + d, _step(span, step_scale).to(tl.int32).to(tl.uint8), mask=inside)
    # a byte's four codes are of dimensions four apart: each is computed where it goes
    j = tl.arange(0, BLOCK // 4)  # of a token's four bytes a block
    packed = tl.zeros((LEAF, BLOCK // 4), dtype=tl.int32)
    for g in tl.static_range(4):
        i = j // 4 * 16 + g * 4 + j % 4
        part = tl.load(keys + t[:, None] * dim + i[None, :], mask=(i < dim)[None, :], other=0.0).to(
            tl.float32
        )
        base = _low(tl.min(part, 0), low_scale) * low_scale
        width = _step(tl.max(part, 0) - base, step_scale) * step_scale
        code = tl.floor((part - base[None, :]) / width[None, :] + 0.5)
        packed += tl.minimum(tl.maximum(code, 0.0), 3.0).to(tl.int32) << (2 * g)
    at = row + 8 + 2 * dim + (j // 4)[None, :] * 64 + t[:, None] * 4 + (j % 4)[None, :]
    tl.store(at, packed.to(tl.uint8), mask=(j // 4 * 16 < dim)[None, :])


def pack_keys(pool: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> None:
    """Low-bit keys of the leaves in `slots` to out [n, Hkv * (6 D + 8)]."""
    _, _, num_kv_heads, _, dim = pool.shape
    scales = torch.empty((len(slots), num_kv_heads, 2), device=pool.device)
    block = triton.next_power_of_2(dim)
    _pack[(len(slots), num_kv_heads)](pool, slots, scales, out, num_kv_heads, dim, LEAF=_LEAF, BLOCK=block)
    # the two float32 fields of each row of bytes
    out.view(len(slots), num_kv_heads, -1)[:, :, :8] = scales.view(torch.uint8)
