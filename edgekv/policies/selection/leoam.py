"""Exact top-k by bounds over chunks of several sizes, as in LeoAM (arXiv 2506.20187).

Chunks of 64 leaves, then nodes of 8, then leaves are refined best first; a chunk is dropped once its upper bound
is below what k leaves have for certain, and taken whole once its lower bound leaves no doubt. What is left is the
same choice that weighing every leaf would give. A leaf's weight is what its low-bit keys estimate of its attention,
each query and head measured by its sum over the leaves that are known first: those that won the step before.

Each level is one tensor: no loop over chunks. Chunks of 64 are derived from nodes in memory (0.1 % of the KV).
Beyond the trained window a chunk is turned as its first column is: there bounds, and the choice, are not exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels
from edgekv.policies.selection.bounds import Weights, settle
from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from torch import Tensor

    from edgekv.policies.selection.selector import Step

NODE = kernels.NODE_LEAVES


@dataclass(slots=True)
class Leoam(Selector):
    """Refines until the choice is certain. `num_weighed` of `num_seen` leaves had to be."""

    num_seen: int = 0
    num_weighed: int = 0
    _winners: dict[int, Tensor] = field(default_factory=dict)
    _chunks: dict[int, Tensor] = field(default_factory=dict)  # rows like those of nodes; whole chunks only

    def select(self, step: Step) -> int:
        """See `Selector`."""
        count = min(step.num_columns, len(step.columns))
        if count == len(step.columns):
            return step.keep_best(torch.zeros(count))
        weights = Weights.of(step, self._seeds(step, count))
        columns, found = self._refine(step, weights, count)
        best = columns[found.topk(count).indices].sort().values
        step.out[:count] = best
        self._winners[step.layer] = best
        self.num_seen += len(step.columns)
        return count

    def reset(self) -> None:
        """See `Selector`."""
        self._winners.clear()
        self._chunks.clear()

    def _seeds(self, step: Step, count: int) -> Tensor:
        """Columns to know first, int64: the last winners, or what the nodes promise; and those in no whole node."""
        first, last = step.columns.start, step.columns.stop
        loose = torch.arange(max(first, last // NODE * NODE), last)
        known = self._winners.get(step.layer)
        if known is None:
            nodes = step.abstracts.nodes(step.layer)
            wanted = -(-count // NODE) * NODE
            known = kernels.candidate_columns(
                step.q, nodes, first, last, step.scale, wanted, turns=step.turns
            ).long()
        known = known[(known >= first) & (known < last)]
        seeds: Tensor = torch.cat([known, loose]).unique()
        return seeds

    def _refine(self, step: Step, weights: Weights, count: int) -> tuple[Tensor, Tensor]:
        """Columns among which are the best `count`, and their weights; infinite where that is certain."""
        columns, found = weights.seeds, weights.of_seeds
        self.num_weighed += len(columns)
        if step.columns.stop < NODE:  # there is no whole node
            return columns, found
        nodes, upper, lower = self._nodes(step, weights, count)
        taken, dropped = settle(upper, lower, _sizes(step, nodes), found, count)
        certain = _leaves(step, nodes[taken])
        columns = torch.cat([columns, certain])
        found = torch.cat([found, torch.full((len(certain),), torch.inf)])
        undecided = ~(taken | dropped)
        order = upper[undecided].sort(descending=True)
        nodes, upper = nodes[undecided][order.indices], order.values
        size = max(1, count // NODE)
        while len(nodes):
            fresh = _leaves(step, nodes[:size])
            fresh = fresh[torch.isin(fresh, columns, invert=True)]
            self.num_weighed += len(fresh)
            columns, found = torch.cat([columns, fresh]), torch.cat([found, weights.of_leaves(fresh)])
            enough = found.topk(count).values[-1] if len(found) >= count else -torch.inf
            nodes, upper = nodes[size:], upper[size:]
            nodes, upper = nodes[upper >= enough], upper[upper >= enough]
            size *= 2
        columns, places = columns.unique(return_inverse=True)
        weight = torch.full((len(columns),), -torch.inf)
        return columns, weight.scatter_reduce_(0, places, found, "amax")

    def _nodes(self, step: Step, weights: Weights, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the nodes that may hold a winner, int64; their bounds from above and from below."""
        rows = step.abstracts.nodes(step.layer)[: step.columns.stop // NODE]
        every = torch.arange(len(rows))
        chunks = self._chunk_rows(step.layer, rows, step.q.shape[2])
        upper, lower = weights.bounds(chunks, torch.arange(len(chunks)) * NODE * NODE)
        sizes = torch.zeros(len(chunks), dtype=torch.int64).index_add_(0, every // NODE, _sizes(step, every))
        _, dropped = settle(upper, lower, sizes, weights.of_seeds, count)
        nodes = every[~dropped[every // NODE]]
        above, below = weights.bounds(rows[nodes], nodes * NODE)
        parents = nodes // NODE
        return nodes, torch.minimum(above, upper[parents]), torch.maximum(below, lower[parents])

    def _chunk_rows(self, layer: int, nodes: Tensor, dim: int) -> Tensor:
        """A row for every 8 of `nodes`, the last of fewer perhaps."""
        known = self._chunks.get(layer, nodes[:0])[: len(nodes) // NODE]
        fresh = nodes[len(known) * NODE :]
        missing = -len(fresh) % NODE
        if missing:  # more of the last one changes no bound
            fresh = torch.cat([fresh, fresh[-1:].expand(missing, -1)])
        rows = torch.cat([known, kernels.nodes_of_nodes(fresh, dim)])
        self._chunks[layer] = rows[: len(nodes) // NODE]
        return rows


def _sizes(step: Step, nodes: Tensor) -> Tensor:
    """How many leaves of each node are to choose from."""
    first = (nodes * NODE).clamp_min(step.columns.start)
    return ((nodes + 1) * NODE).clamp_max(step.columns.stop) - first


def _leaves(step: Step, nodes: Tensor) -> Tensor:
    """Columns of nodes that are to choose from."""
    columns = (nodes[:, None] * NODE + torch.arange(NODE)).flatten()
    return columns[columns >= step.columns.start]
