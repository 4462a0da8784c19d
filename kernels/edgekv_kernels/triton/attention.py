"""Partial attention over pool leaves: a program owns one query, one kv head and a run of leaves.

The runs' results are partial attentions themselves and are merged like any others.
"""

# Triton kernels are typed by what they are launched with.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgekv_kernels.reference import attention as reference
from edgekv_kernels.triton.merging import merge_
from edgekv_kernels.triton.turning import turn_kind, turned_dims

_LEAF = 16
_RUN_LEAVES = 32  # leaves a program: 512 tokens, so that long contexts fill the device
_FEW = 64  # queries beyond which dense products win
_SEGMENT_LEAVES = 64  # leaves whose float32 scores are held at a time


@triton.jit
def _attend(
    q,
    pool,
    slots,
    tokens,
    scale,
    out,
    lse,
    queries,
    kv_heads,
    group,
    dim,
    q_stride,
    run_leaves,
    turns,
    half,
    LEAF: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
):
    t = tl.program_id(0)
    head = tl.program_id(1)
    run = tl.program_id(2)
    g = tl.arange(0, GROUP)
    d = tl.arange(0, BLOCK)
    row = tl.arange(0, LEAF)
    heads = kv_heads * group
    inside_q = (g[:, None] < group) & (d[None, :] < dim)
    at_q = q + t * q_stride + (head * group + g[:, None]) * dim
    query = tl.load(at_q + d[None, :], mask=inside_q, other=0.0)
    if TURN != 0:
        turned, partner, pair, sign = turned_dims(d, half, TURN)
        other_half = (
            tl.load(at_q + partner[None, :], mask=inside_q & turned[None, :], other=0.0) * sign[None, :]
        )
    top = tl.full((GROUP,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((GROUP,), dtype=tl.float32)
    result = tl.zeros((GROUP, BLOCK), dtype=tl.float32)
    plane = kv_heads * LEAF * dim
    last = tl.minimum((run + 1) * run_leaves, (tokens + LEAF - 1) // LEAF)
    for leaf in range(run * run_leaves, last):
        slot = tl.load(slots + leaf).to(tl.int64)
        exists = leaf * LEAF + row < tokens
        inside = exists[:, None] & (d[None, :] < dim)
        at = pool + slot * 2 * plane + head * LEAF * dim + row[:, None] * dim + d[None, :]
        key = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(at + plane, mask=inside, other=0.0).to(tl.float32)
        if TURN != 0:
            cos = tl.load(turns + leaf * 2 * half + pair, mask=turned, other=1.0)
            sin = tl.load(turns + leaf * 2 * half + half + pair, mask=turned, other=0.0)
            here = query * cos[None, :] + other_half * sin[None, :]
            scores = tl.sum(here[:, None, :] * key[None, :, :], 2) * scale
        else:
            scores = tl.sum(query[:, None, :] * key[None, :, :], 2) * scale
        scores = tl.where(exists[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        result = result * shrink[:, None] + tl.sum(weights[:, :, None] * value[None, :, :], 1)
        top = new_top
    place = (run * queries + t) * heads + head * group + g
    tl.store(out + place[:, None] * dim + d[None, :], result / total[:, None], mask=inside_q)
    tl.store(lse + place, top + tl.log(total), mask=g < group)


def attend_leaves(
    q: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: int,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    turns: torch.Tensor | None,
    style: str,
) -> None:
    """Queries [T, Hq, D] over the first `num_tokens` (at least one) tokens of the leaves in `slots`."""
    num_queries, num_heads, dim = q.shape
    if num_queries > _FEW:
        _attend_in_segments(q, pool, slots, num_tokens, scale, out, lse, turns, style)
        return
    num_kv_heads = pool.shape[2]
    group = num_heads // num_kv_heads
    num_runs = triton.cdiv(triton.cdiv(num_tokens, _LEAF), _RUN_LEAVES)
    run_out = out[None] if num_runs == 1 else torch.empty((num_runs, *out.shape), device=q.device)
    run_lse = lse[None] if num_runs == 1 else torch.empty((num_runs, *lse.shape), device=q.device)
    _attend[num_queries, num_kv_heads, num_runs](
        q,
        pool,
        slots,
        num_tokens,
        scale,
        run_out,
        run_lse,
        num_queries,
        num_kv_heads,
        group,
        dim,
        q.stride(0),
        _RUN_LEAVES,
        q if turns is None else turns,
        0 if turns is None else turns.shape[1] // 2,
        LEAF=_LEAF,
        GROUP=triton.next_power_of_2(group),
        BLOCK=triton.next_power_of_2(dim),
        TURN=turn_kind(turns, style),
    )
    if num_runs > 1:
        merged = torch.logsumexp(run_lse, dim=0)
        torch.sum(run_out * (run_lse - merged).exp()[..., None], dim=0, out=out)
        lse.copy_(merged)


def _attend_in_segments(
    q: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: int,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    turns: torch.Tensor | None,
    style: str,
) -> None:
    """Many queries: plain torch over a few leaves at a time, so that the scores never outgrow a small scratch."""
    out.zero_()
    lse.fill_(-torch.inf)
    part_out, part_lse = torch.empty_like(out), torch.empty_like(lse)
    for first in range(0, triton.cdiv(num_tokens, _LEAF), _SEGMENT_LEAVES):
        count = min(num_tokens - first * _LEAF, _SEGMENT_LEAVES * _LEAF)
        part = slots[first : first + _SEGMENT_LEAVES]
        rotation = None if turns is None else turns[first : first + _SEGMENT_LEAVES]
        reference.attend_leaves(q, pool, part, count, scale, part_out, part_lse, rotation, style)
        merge_(out, lse, part_out, part_lse)
