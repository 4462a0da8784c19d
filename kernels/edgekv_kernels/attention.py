"""Partial attention over pool leaves and inside a block: host side.

Every call returns (out, lse), so results over any cut of the keys merge exactly (`merge_`).
Knows slots and tokens. Does not know positions (keys carry their rotation) nor what was selected.

Few queries (decode) run in float32 over the bfloat16 pool; many (prefill) in bfloat16 products with float32
sums: natively where the processor has such products, else by torch's own attention over gathered leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekv_kernels import dense, dispatch
from edgekv_kernels.kv import LEAF_TOKENS
from edgekv_kernels.reference import attention as reference
from edgekv_kernels.turns import NOT_TURNED, Turns, spread

if TYPE_CHECKING:
    from edgekv_kernels.dispatch import Form

FEW_QUERIES = 8  # up to here the float32 form is as fast as the bfloat16 one
_VECTOR = 16  # the native forms take head dimensions that are multiples of this
_MAX_NATIVE_DIM = 256


def attend_leaves(
    q: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: int,
    scale: float,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    turns: Turns | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query over the first `num_tokens` tokens of the listed leaves; no causal mask.

    q: float32 [T, Hq, D], heads contiguous (a slice of fused rows will do); Hq = G * Hkv, query head h reads
    kv head h // G. pool: bfloat16 [num_slots, 2, Hkv, 16, D] contiguous. slots: int32 [n] on the pool's device.
    turns: a row for each leaf, on the pool's device; None where none is turned.
    Returns out float32 [T, Hq, D] and lse float32 [T, Hq] (natural log); no tokens give out 0, lse -inf.
    """
    num_queries, _, dim = q.shape
    _, planes, num_kv_heads, leaf_tokens, pool_dim = pool.shape
    assert planes == 2, pool.shape
    assert leaf_tokens == LEAF_TOKENS, pool.shape
    assert dim == pool_dim, (pool.shape, q.shape)
    assert 0 <= num_tokens <= len(slots) * LEAF_TOKENS, (num_tokens, slots.shape)
    assert turns is None or len(turns) == len(slots), (turns, slots.shape)
    out, lse = _destination(q, num_kv_heads, out, lse)
    if num_tokens == 0 or num_queries == 0:
        out.zero_()
        lse.fill_(-torch.inf)
        return out, lse
    form = _form(dim, pool)
    if form == "native":
        job = _job(q, num_kv_heads, pool, slots, num_tokens, scale, out, lse, turns)
        if num_queries <= FEW_QUERIES:
            dispatch.native.attend(*job)
        elif dispatch.native.has_bf16():
            dispatch.native.attend_many(*job, 0)
        else:
            dense.attend_leaves(q, pool, slots, num_tokens, scale, out, lse, *spread(turns))
    elif form == "triton":
        triton = dispatch.triton_form("attention")
        triton.attend_leaves(q, pool, slots, num_tokens, scale, out, lse, *spread(turns))
    else:
        reference.attend_leaves(q, pool, slots, num_tokens, scale, out, lse, *spread(turns))
    return out, lse


def attend_block(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention inside one block of T tokens (prefill: at most 512).

    q: float32 [T, Hq, D]; k, v: float32 [T, Hkv, D], rounded to bfloat16 first so that the result equals
    attention over the stored leaves. All may be slices of fused rows. Returns (out, lse) as `attend_leaves`.
    """
    num_tokens, num_kv_heads, dim = k.shape
    assert k.shape == v.shape, (k.shape, v.shape)
    assert len(q) == num_tokens, (k.shape, q.shape)
    assert q.shape[2] == dim, (k.shape, q.shape)
    out, lse = _destination(q, num_kv_heads, out, lse)
    if num_tokens == 0:
        return out, lse
    form = _form(dim, k)
    if form == "native" and num_tokens == 1:  # alone, a token sees itself: weight 1
        pool, slots = _as_leaves(k, v)
        dispatch.native.attend(*_job(q, num_kv_heads, pool, slots, 1, scale, out, lse))
    elif form == "native" and dispatch.native.has_bf16():
        pool, slots = _as_leaves(k, v)
        dispatch.native.attend_many(*_job(q, num_kv_heads, pool, slots, num_tokens, scale, out, lse), 1)
    elif form == "native":
        dense.attend_block(q, k, v, scale, out, lse)
    else:
        reference.attend_block(q, k, v, scale, out, lse)
    return out, lse


def _form(dim: int, kv: torch.Tensor) -> Form:
    """The chosen form; native gives way to the reference for head dimensions it was not written for."""
    form = dispatch.form_of(kv)
    return "reference" if form == "native" and (dim % _VECTOR or dim > _MAX_NATIVE_DIM) else form


def _destination(
    q: torch.Tensor, num_kv_heads: int, out: torch.Tensor | None, lse: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checked or new result tensors."""
    num_queries, num_heads, dim = q.shape
    assert num_heads % num_kv_heads == 0, (num_heads, num_kv_heads)
    _, head, step = q.stride()
    assert step == 1, q.stride()
    assert head == dim, q.stride()
    if out is None:
        out = torch.empty(num_queries, num_heads, dim, device=q.device)
    if lse is None:
        lse = torch.empty(num_queries, num_heads, device=q.device)
    assert out.is_contiguous()
    assert lse.is_contiguous()
    assert out.shape == q.shape, (out.shape, q.shape)
    return out, lse


def _as_leaves(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A pool of just this block's leaves, and its slots in order."""
    num_tokens, num_kv_heads, dim = k.shape
    num_leaves = -(-num_tokens // LEAF_TOKENS)
    pool = torch.empty((num_leaves, 2, num_kv_heads, LEAF_TOKENS, dim), dtype=torch.bfloat16)
    slots = torch.arange(num_leaves, dtype=torch.int32)
    dispatch.native.append_kv(
        pool.data_ptr(),
        slots.data_ptr(),
        0,
        k.data_ptr(),
        v.data_ptr(),
        num_tokens,
        num_kv_heads,
        dim,
        k.stride(0),
        v.stride(0),
    )
    return pool, slots


def _job(
    q: torch.Tensor,
    num_kv_heads: int,
    pool: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: int,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    turns: Turns | None = None,
) -> tuple[int | float, ...]:
    """What the native kernels are told."""
    num_queries, num_heads, dim = q.shape
    assert slots.dtype is torch.int32, slots.dtype
    assert slots.is_contiguous()
    assert pool.is_contiguous()
    return (
        q.data_ptr(),
        pool.data_ptr(),
        slots.data_ptr(),
        num_tokens,
        scale,
        out.data_ptr(),
        lse.data_ptr(),
        num_queries,
        num_heads,
        num_kv_heads,
        dim,
        q.stride()[0],
        *(NOT_TURNED if turns is None else turns.native(dim)),
    )
