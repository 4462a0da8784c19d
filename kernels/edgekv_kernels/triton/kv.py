"""Writing keys and values into pool slots: one program a token and kv head."""

# Triton kernels are typed by what they are launched with.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

_LEAF = 16


@triton.jit
def _bf16_bits(x):
    """To nearest even, spelt out: Triton's interpreter cuts the low bits off. NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16)
    return tl.where((bits & 0x7FFFFFFF) <= 0x7F800000, rounded, 0x7FC0).to(tl.int16)


@triton.jit
def _append(
    pool, slots, offset, k, v, k_stride, v_stride, heads, dim, LEAF: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    head = tl.program_id(1)
    i = tl.arange(0, BLOCK)
    inside = i < dim
    at = offset + token
    slot = tl.load(slots + at // LEAF).to(tl.int64)
    plane = heads * LEAF * dim
    to = pool + slot * 2 * plane + head * LEAF * dim + (at % LEAF) * dim + i
    key = tl.load(k + token * k_stride + head * dim + i, mask=inside)
    value = tl.load(v + token * v_stride + head * dim + i, mask=inside)
    tl.store(to, _bf16_bits(key), mask=inside)
    tl.store(to + plane, _bf16_bits(value), mask=inside)


def append_kv(pool: torch.Tensor, slots: torch.Tensor, offset: int, k: torch.Tensor, v: torch.Tensor) -> None:
    """Token t of k, v [T, Hkv, D] goes to pool[slots[(offset+t)//16], :, :, (offset+t)%16]."""
    num_tokens, heads, dim = k.shape
    block = triton.next_power_of_2(dim)
    _append[(num_tokens, heads)](
        pool.view(torch.int16),
        slots,
        offset,
        k,
        v,
        k.stride(0),
        v.stride(0),
        heads,
        dim,
        LEAF=_LEAF,
        BLOCK=block,
    )
