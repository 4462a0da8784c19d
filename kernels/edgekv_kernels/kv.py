"""Writing keys and values into pool slots: host side.

A pool is [num_slots, 2, Hkv, 16, D] bfloat16: a slot holds one leaf of one layer, keys then values.
Knows slots. Does not know which sequence a slot belongs to, nor who may write it.
"""

from __future__ import annotations

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.reference import kv as reference

LEAF_TOKENS = 16


def append_kv(pool: torch.Tensor, slots: torch.Tensor, offset: int, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write tokens offset .. offset+T over the listed slots, rounded to nearest even.

    Token t goes to slot `slots[(offset + t) // 16]`, row `(offset + t) % 16`. slots: int32 [n] on the pool's
    device; k, v: float32 [T, Hkv, D], heads contiguous (a slice of fused rows will do).
    """
    num_tokens, num_heads, dim = k.shape
    _, _, pool_heads, _, pool_dim = pool.shape
    assert k.shape == v.shape, (k.shape, v.shape)
    assert num_heads == pool_heads, (k.shape, pool.shape)
    assert dim == pool_dim, (k.shape, pool.shape)
    assert 0 <= offset <= len(slots) * LEAF_TOKENS - num_tokens, (offset, num_tokens, slots.shape)
    if num_tokens == 0:
        return
    form = dispatch.form_of(pool)
    if form == "native":
        k_row, k_head, k_step = k.stride()
        v_row, v_head, v_step = v.stride()
        assert k_step == v_step == 1, (k.stride(), v.stride())
        assert k_head == v_head == dim, (k.stride(), v.stride())
        assert pool.is_contiguous()
        assert slots.dtype is torch.int32, slots.dtype
        dispatch.native.append_kv(
            pool.data_ptr(),
            slots.data_ptr(),
            offset,
            k.data_ptr(),
            v.data_ptr(),
            num_tokens,
            num_heads,
            dim,
            k_row,
            v_row,
        )
    elif form == "triton":
        dispatch.triton_form("kv").append_kv(pool, slots, offset, k, v)
    else:
        reference.append_kv(pool, slots, offset, k, v)
