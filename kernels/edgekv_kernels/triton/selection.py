"""Scores of leaves by their low-bit keys: one program a leaf, kv head and query; torch does the softmax."""

# Triton kernels are typed by what they are launched with.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgekv_kernels.triton.turning import turn_kind, turned_dims

_LEAF = 16


@triton.jit
def _score(
    q,
    keys,
    scales,
    scale,
    lse,
    leaves,
    kv_heads,
    group,
    dim,
    q_stride,
    turns,
    half,
    LEAF: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
):
    leaf = tl.program_id(0)
    head = tl.program_id(1)
    t = tl.program_id(2)
    g = tl.arange(0, GROUP)
    d = tl.arange(0, BLOCK)
    token = tl.arange(0, LEAF)
    inside = d < dim
    inside_q = (g[:, None] < group) & inside[None, :]
    at_q = q + t * q_stride + (head * group + g[:, None]) * dim
    query = tl.load(at_q + d[None, :], mask=inside_q, other=0.0)
    if TURN != 0:
        turned, partner, pair, sign = turned_dims(d, half, TURN)
        cos = tl.load(turns + leaf * 2 * half + pair, mask=turned, other=1.0)
        sin = tl.load(turns + leaf * 2 * half + half + pair, mask=turned, other=0.0)
        other_half = tl.load(at_q + partner[None, :], mask=inside_q & turned[None, :], other=0.0)
        query = query * cos[None, :] + other_half * (sign * sin)[None, :]
    place = leaf * kv_heads + head
    row = keys + place.to(tl.int64) * (6 * dim + 8) + 8
    low = tl.load(row + d, mask=inside, other=0).to(tl.int8, bitcast=True).to(tl.float32)
    step = tl.load(row + dim + d, mask=inside, other=0).to(tl.float32)
    codes = row + 2 * dim + token[:, None] * 4 + (d // 16 * 64 + d % 4)[None, :]
    packed = tl.load(codes, mask=inside[None, :], other=0).to(tl.int32)
    code = ((packed >> (d % 16 // 4 * 2)[None, :]) & 3).to(tl.float32)
    low_scale = tl.load(scales + place * 2)
    step_scale = tl.load(scales + place * 2 + 1)
    key = (low * low_scale)[None, :] + code * (step * step_scale)[None, :]
    scores = tl.sum(query[:, None, :] * key[None, :, :], 2) * scale
    top = tl.max(scores, 1)
    total = tl.sum(tl.exp(scores - top[:, None]), 1)
    to = lse + (t * kv_heads * group + head * group + g) * leaves + leaf
    tl.store(to, top + tl.log(total), mask=g < group)


def score_leaves(
    q: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    turns: torch.Tensor | None,
    style: str,
    out: torch.Tensor,
) -> None:
    """Softmax mass of the leaves whose rows are `keys` [n, ...], summed over queries and heads; turns [n, R]."""
    num_queries, num_heads, dim = q.shape
    num_leaves = len(keys)
    num_kv_heads = keys.shape[1] // (6 * dim + 8)
    group = num_heads // num_kv_heads
    scales = keys.view(num_leaves, num_kv_heads, -1)[:, :, :8].contiguous().view(torch.float32)
    lse = torch.empty((num_queries * num_heads, num_leaves), device=q.device)
    _score[num_leaves, num_kv_heads, num_queries](
        q,
        keys,
        scales,
        scale,
        lse,
        num_leaves,
        num_kv_heads,
        group,
        dim,
        q.stride(0),
        q if turns is None else turns,
        0 if turns is None else turns.shape[1] // 2,
        LEAF=_LEAF,
        GROUP=triton.next_power_of_2(group),
        BLOCK=triton.next_power_of_2(dim),
        TURN=turn_kind(turns, style),
    )
    torch.sum(lse.softmax(-1), dim=0, out=out)
