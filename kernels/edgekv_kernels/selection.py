"""Choosing leaves by their abstracts: host side.

Estimates how much of the attention each leaf would get, from low-bit keys (`score_leaves`) or from nodes
(`score_nodes`), and picks the best (`select_leaves`). Index rows are laid out as `edgekv_kernels.abstracts` tells;
row c of `keys` is column c, row n of `nodes` is columns 8 n to 8 n + 7 of the same layer.
Knows rows and column numbers. Does not know budgets' reasons, tiers or which leaves are resident.

`turns` has a row for every column, None where none is turned; a node is turned as its first column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.abstracts import MAX_DIM, NODE_LEAVES
from edgekv_kernels.reference import selection as reference
from edgekv_kernels.turns import NOT_TURNED, Turns, spread

if TYPE_CHECKING:
    from edgekv_kernels.dispatch import Form
    from edgekv_kernels.rope import Style

ALPHA = 0.3  # how far from a node's mean towards its bound its promise is taken


def score_leaves(
    q: torch.Tensor,
    keys: torch.Tensor,
    columns: torch.Tensor | None,
    first: int,
    last: int,
    scale: float,
    turns: Turns | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Estimated softmax mass of each scored column, summed over queries and heads: float32 [n]; sums to T * Hq.

    q: float32 [T, Hq, D], heads contiguous; keys: uint8 [num_columns, Hkv * (6 D + 8)]. Scored are the listed
    `columns` (int32 [n], each below num_columns), or first to last - 1 where it is None.
    """
    rows = _range(keys, columns, first, last)
    out = _result(q, rows, out)
    form = _form(q, keys)
    if rows == 0 or len(q) == 0:
        return out.zero_()
    if form == "native":
        job = _job(q, keys, columns, first, rows, scale, turns)
        dispatch.native.score_leaves(*job, out.data_ptr())
        return out
    chosen, rotation = _taken(keys, columns, first, last), _rotation(turns, columns, first, last)
    if form == "triton":
        dispatch.triton_form("selection").score_leaves(q, chosen, scale, *rotation, out)
    else:
        reference.score_leaves(q, chosen, scale, *rotation, out)
    return out


def score_among(
    q: torch.Tensor,
    keys: torch.Tensor,
    columns: torch.Tensor | None,
    around: torch.Tensor | None,
    first: int,
    last: int,
    scale: float,
    turns: Turns | None = None,
) -> torch.Tensor:
    """`score_leaves` with the columns `around` (int32 [m]) in every head's softmax: float32 [n] of the others.

    What the heads give to `around` is missing from the sum.
    """
    if around is None or len(around) == 0:
        return score_leaves(q, keys, columns, first, last, scale, turns)
    if columns is None:
        columns = torch.arange(first, last, dtype=torch.int32, device=around.device)
    every = torch.cat((columns, around))
    return score_leaves(q, keys, every, 0, 0, scale, turns)[: len(columns)]


def score_nodes(
    q: torch.Tensor,
    nodes: torch.Tensor,
    first: int,
    last: int,
    scale: float,
    turns: Turns | None = None,
    alpha: float = ALPHA,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """How promising nodes first to last - 1 are: float32 [last - first], summing to T * Hq.

    Per query and head the softmax over nodes of mean + alpha * (bound - mean), bound being the greatest possible
    score of a key in the node. nodes: uint8 [num_nodes, Hkv * (3 D + 8)]; turns: a row per column.
    """
    rows = _range(nodes, None, first, last)
    out = _result(q, rows, out)
    if rows == 0 or len(q) == 0:
        return out.zero_()
    if _form(q, nodes) == "native":
        job = _job(q, nodes, None, first, rows, scale, turns)
        dispatch.native.score_nodes(*job, out.data_ptr(), alpha)
        return out
    reference.score_nodes(q, nodes[first:last], scale, alpha, *_of_nodes(turns, first, last), out)
    return out


def leaf_bounds(
    q: torch.Tensor,
    keys: torch.Tensor,
    columns: torch.Tensor | None,
    first: int,
    last: int,
    scale: float,
    turns: Turns | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest score that any key of each leaf can have (LeoAM, arXiv 2506.20187): [T, Hq, n] twice."""
    _range(keys, columns, first, last)
    rotation = _rotation(turns, columns, first, last)
    return reference.leaf_bounds(q, _taken(keys, columns, first, last), scale, *rotation)


def node_bounds(
    q: torch.Tensor,
    nodes: torch.Tensor,
    first: int,
    last: int,
    scale: float,
    turns: Turns | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest score that any key of nodes first to last - 1 can have: [T, Hq, n] twice."""
    _range(nodes, None, first, last)
    return reference.node_bounds(q, nodes[first:last], scale, *_of_nodes(turns, first, last))


def select_leaves(
    q: torch.Tensor,
    keys: torch.Tensor,
    first: int,
    last: int,
    budget: int,
    scale: float,
    out: torch.Tensor,
    *,
    mass: torch.Tensor | None = None,
    nodes: torch.Tensor | None = None,
    max_candidates: int = 0,
    extra: torch.Tensor | None = None,
    around: torch.Tensor | None = None,
    turns: Turns | None = None,
    alpha: float = ALPHA,
) -> int:
    """Write the `budget` columns of [first, last) with the largest estimated mass to `out`, ascending; their count.

    out: int32 [>= min(budget, last - first)]; mass: float32 of at least that length, filled with the estimated mass
    of each column in `out`. Without it nothing is scored where the range fits the budget. With `nodes` and more
    than `max_candidates` columns in the range, the `max_candidates // 8` most promising nodes are found first, and
    only their columns, those in no whole node and those of `extra` are scored (int32, any order; columns outside
    the range are ignored). `around`: int32, rows of `keys` outside the range that are attended anyway: they take
    part in each head's softmax, so that a head which looks only there does not weigh in.
    """
    assert 0 <= first <= last <= len(keys), (first, last, keys.shape)
    assert budget >= 0, budget
    assert out.dtype is torch.int32, out.dtype
    count = min(budget, last - first)
    assert len(out) >= count, (out.shape, count)
    assert mass is None or len(mass) >= count, (mass, count)
    if count == 0:
        return 0
    if count == last - first and mass is None:
        torch.arange(first, last, dtype=torch.int32, out=out[:count])
        return count
    if _form(q, keys) == "native":
        extras = 0 if extra is None else len(extra)
        assert extra is None or (extra.dtype is torch.int32 and extra.is_contiguous())
        assert out.is_contiguous()
        assert nodes is None or (nodes.is_contiguous() and nodes.dtype is torch.uint8)
        assert around is None or (around.dtype is torch.int32 and around.is_contiguous())
        return int(
            dispatch.native.select_leaves(
                *_job(q, keys, None, first, last - first, scale, turns),
                out.data_ptr(),
                0 if mass is None else mass.data_ptr(),
                count,
                0 if nodes is None else nodes.data_ptr(),
                0 if nodes is None else len(nodes),
                max_candidates,
                0 if extra is None else extra.data_ptr(),
                extras,
                alpha,
                0 if around is None else around.data_ptr(),
                0 if around is None else len(around),
            )
        )
    columns = _candidates(q, first, last, scale, nodes, max_candidates, extra, turns, alpha)
    scores = score_among(q, keys, columns, around, first, last, scale, turns)
    best = scores.topk(min(count, len(scores))).indices.sort().values
    count = len(best)
    out[:count] = best + first if columns is None else columns[best]
    if mass is not None:
        mass[:count] = scores[best]
    return count


def _candidates(
    q: torch.Tensor,
    first: int,
    last: int,
    scale: float,
    nodes: torch.Tensor | None,
    max_candidates: int,
    extra: torch.Tensor | None,
    turns: Turns | None,
    alpha: float,
) -> torch.Tensor | None:
    """Columns worth scoring one by one (int32, ascending); None for the whole range."""
    if nodes is None or last - first <= max_candidates:
        return None
    first_node, last_node = -(-first // NODE_LEAVES), min(last // NODE_LEAVES, len(nodes))
    if last_node <= first_node:
        return None
    promise = score_nodes(q, nodes, first_node, last_node, scale, turns, alpha)
    found = reference.candidates(promise, first_node, first, last, max_candidates // NODE_LEAVES)
    if extra is not None:
        found = torch.cat((found, extra[(extra >= first) & (extra < last)])).unique()
    return found.int()


def candidate_columns(
    q: torch.Tensor,
    nodes: torch.Tensor,
    first: int,
    last: int,
    scale: float,
    max_candidates: int,
    extra: torch.Tensor | None = None,
    turns: Turns | None = None,
    alpha: float = ALPHA,
) -> torch.Tensor:
    """The columns of [first, last) that `select_leaves` would score, int32, ascending: what has to be read first
    where keys are not in memory. Arguments as there.
    """
    found = _candidates(q, first, last, scale, nodes, max_candidates, extra, turns, alpha)
    return torch.arange(first, last, dtype=torch.int32) if found is None else found


def _range(rows: torch.Tensor, columns: torch.Tensor | None, first: int, last: int) -> int:
    """How many rows are asked for, checked."""
    assert rows.dtype is torch.uint8, rows.dtype
    assert rows.is_contiguous()
    if columns is not None:
        assert columns.dtype is torch.int32, columns.dtype
        assert columns.is_contiguous()
        return len(columns)
    assert 0 <= first <= last <= len(rows), (first, last, rows.shape)
    return last - first


def _taken(rows: torch.Tensor, columns: torch.Tensor | None, first: int, last: int) -> torch.Tensor:
    """The asked rows."""
    return rows[first:last] if columns is None else rows[columns.long()]


def _rotation(
    turns: Turns | None, columns: torch.Tensor | None, first: int, last: int
) -> tuple[torch.Tensor | None, Style]:
    """A row of turns for each asked column, as the plain and the Triton forms take them."""
    if turns is None:
        return None, "split"
    return spread(Turns(turns.rows, _taken(turns.of, columns, first, last), turns.style))


def _of_nodes(turns: Turns | None, first: int, last: int) -> tuple[torch.Tensor | None, Style]:
    """The same for nodes."""
    return _rotation(turns, torch.arange(first, last, dtype=torch.int32) * NODE_LEAVES, 0, 0)


def _result(q: torch.Tensor, num_rows: int, out: torch.Tensor | None) -> torch.Tensor:
    """Checked or new result."""
    if out is None:
        return torch.empty(num_rows, device=q.device)
    assert out.dtype is torch.float32, out.dtype
    assert out.shape == (num_rows,), (out.shape, num_rows)
    assert out.is_contiguous()
    return out


def _form(q: torch.Tensor, rows: torch.Tensor) -> Form:
    """The chosen form; native gives way to the reference for head dimensions it was not written for."""
    assert q.is_cpu == rows.is_cpu, (q.device, rows.device)
    form = dispatch.form_of(rows)
    return "reference" if form == "native" and (q.shape[2] % 16 or q.shape[2] > MAX_DIM) else form


def _job(
    q: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    first: int,
    num_rows: int,
    scale: float,
    turns: Turns | None,
) -> tuple[int | float, ...]:
    """What the native kernels are told: queries, rows, which of them, turns."""
    num_queries, num_heads, dim = q.shape
    row, head, step = q.stride()
    assert step == 1, q.stride()
    assert head == dim, q.stride()
    assert rows.is_contiguous()
    return (
        q.data_ptr(),
        rows.data_ptr(),
        0 if columns is None else columns.data_ptr(),
        first,
        num_rows,
        scale,
        num_queries,
        num_heads,
        dim,
        row,
        rows.shape[1],
        *(NOT_TURNED if turns is None else turns.native(dim)),
    )
