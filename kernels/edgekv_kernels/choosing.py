"""Which columns one token attends to in each layer, by the estimated mass of its query: host side.

`Choosing` says what is ranked in which pass, and is the plain form of one layer; the native form is part of
`pass_layers_`. Knows columns, rows of the index and which leaves are away. Does not know tiers, or why as many are
chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgekv_kernels.abstracts import NODE_LEAVES
from edgekv_kernels.selection import ALPHA, candidate_columns, score_among

if TYPE_CHECKING:
    from edgekv_kernels.halves import LayerWeights
    from edgekv_kernels.turns import Turns


@dataclass(frozen=True, slots=True, eq=False)
class Choosing:
    """Which `budget` columns of [first, last) are attended beside the fixed ones: those of most estimated mass.

    keys: uint8 [num_layers, num_columns, Hkv * (6 D + 8)], rows contiguous within a layer. around: int32 [n], as
    `select_leaves` takes them. nodes: uint8 [num_layers, num_columns // 8, Hkv * (3 D + 8)], likewise.

    Where there are more columns than a row of `scanned` has room for, a layer ranks all of them only in one of
    `scan_period` passes (layers take turns): the best n go to its row, int32 [num_layers, n + 2]: how many, the
    range's end, they. In one of `period` passes it searches: it ranks these, what it kept, and the columns that
    came since. The best m, the first of all and what follows the chosen ones are kept, `kept` int32 [num_layers,
    m + budget + 3] with m >= budget: likewise. In between it ranks those and the columns that came since.
    A count of 0: nothing is known yet; with `nodes` only layers whose turn it is to search rank all columns then,
    others those of the `num_promising` most promising nodes. `phase` is a number of each pass. The mass of a leaf
    that is not in memory counts `away` times where columns are chosen: one that has to be read displaces only what
    weighs clearly less.
    """

    keys: torch.Tensor
    first: int
    last: int
    budget: int
    scanned: torch.Tensor
    kept: torch.Tensor
    around: torch.Tensor | None = None
    nodes: torch.Tensor | None = None
    num_promising: int = 0
    scan_period: int = 1
    period: int = 1
    away: float = 1.0

    @property
    def max_candidates(self) -> int:
        """Columns that a scan leaves to be searched."""
        return self.scanned.shape[1] - 2

    def of(
        self,
        layer: int,
        q: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        turns: Turns | None,
        phase: int,
        where: torch.Tensor,
        measured: torch.Tensor,
        fixed: torch.Tensor,
    ) -> int:
        """Write one layer's choice for q float32 [1, Hq, D] to `out` int32 [>= budget]; how many.

        Columns that are `fixed`, attended anyway, are not chosen; what falls on them counts as kept.
        """
        count = self.last - self.first
        named = fixed[(fixed >= self.first) & (fixed < self.last)]
        if count <= self.budget:
            columns = torch.arange(self.first, self.last, dtype=torch.int32)
            columns = columns[~torch.isin(columns, named)]
            out[: len(columns)] = columns
            return len(columns)
        rank = self._to_rank(layer, q, scale, turns, phase)
        columns = rank.columns
        bounds = self.first, self.last
        mass = score_among(q, self.keys[layer], columns, self.around, *bounds, scale, turns)
        if rank.scans:
            _note(self.scanned[layer], _best_of(mass, columns, self.max_candidates), self.last)
        weighed = torch.where(where.index_select(0, columns) < 0, mass * self.away, mass)
        weighed[torch.isin(columns, named)] = -1.0
        best = _best_of(weighed, columns, self.budget)
        best = best[~torch.isin(best, named)]
        if rank.is_all:
            lost = mass.sum() - mass[torch.cat((best, named)) - self.first].sum()
            measured += torch.stack([1 - lost / q.shape[1], torch.ones(())])
        if rank.searches:
            kept = self.kept[layer]
            most = _best_of(mass, columns, len(kept) - 3 - self.budget)
            most = torch.cat((most, torch.tensor([self.first]), best[best + 1 < self.last] + 1)).unique()
            _note(kept, most, self.last)
        out[: len(best)] = best
        return len(best)

    def _to_rank(self, layer: int, q: torch.Tensor, scale: float, turns: Turns | None, phase: int) -> _ToRank:
        kept, in_turn = self.kept[layer], (layer + phase) % self.period == 0
        again = not in_turn and int(kept[0]) > 0
        everything = _ToRank(torch.arange(self.first, self.last, dtype=torch.int32), is_all=True)
        if len(everything.columns) <= self.max_candidates:
            return _ToRank(self._listed(kept)) if again else replace(everything, searches=True)
        scan = replace(everything, scans=True, searches=True)
        if (scan_turn(layer, self.scan_period) + phase) % self.scan_period == 0:
            return scan
        if self.scanned[layer, 0] == 0:
            if in_turn or self.nodes is None or not self.nodes.numel():
                return scan
            most = self.num_promising * NODE_LEAVES
            columns = candidate_columns(q, self.nodes[layer], self.first, self.last, scale, most, turns=turns)
            return replace(scan, columns=columns, is_all=False)
        return _ToRank(self._listed(kept)) if again else _ToRank(self.searched(layer), searches=True)

    def searched(self, layer: int) -> torch.Tensor:
        """What a search of the layer ranks between two scans: int32, ascending."""
        kept = self.kept[layer]
        known = self._listed(self.scanned[layer]), kept[2 : 2 + int(kept[0])]
        columns: torch.Tensor = torch.cat(known).unique()
        return columns[(columns >= self.first) & (columns < self.last)]

    def _listed(self, row: torch.Tensor) -> torch.Tensor:
        """What a row names, and the columns that came since."""
        listed, end = row[2 : 2 + int(row[0])], min(int(row[1]), self.last)
        return torch.cat((listed[listed < self.last], torch.arange(end, self.last, dtype=torch.int32)))


@dataclass(frozen=True, slots=True, eq=False)
class _ToRank:
    """Columns that a layer ranks in one pass, int32, ascending, and what becomes of them."""

    columns: torch.Tensor
    is_all: bool = False
    scans: bool = False
    searches: bool = False


def scan_turn(layer: int, scan_period: int) -> int:
    """When in `scan_period` passes a layer scans: spread over them, as a scan reads much. Those that scan one after
    the other lie far apart (by the golden ratio): what a few of them measure is told as the answer's.
    """
    return layer * 40503 % 65536 * scan_period // 65536


def _note(row: torch.Tensor, columns: torch.Tensor, end: int) -> None:
    """How many, the range's end, they."""
    row[0], row[1] = len(columns), end
    row[2 : 2 + len(columns)] = columns


def _best_of(mass: torch.Tensor, columns: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` columns of most mass, ascending; all where there are fewer."""
    return columns[mass.topk(min(count, len(columns))).indices].sort().values


def native_choice(one: LayerWeights, choosing: Choosing) -> tuple[int | float, ...]:
    """What the native form is told of the choice."""
    assert 0 <= choosing.first <= choosing.last <= choosing.keys.shape[1]
    assert choosing.keys[0].is_contiguous()
    assert choosing.kept.dtype is choosing.scanned.dtype is torch.int32
    assert choosing.kept.stride(1) == choosing.scanned.stride(1) == 1
    assert choosing.kept.shape[1] >= 2 * choosing.budget + 3
    assert choosing.max_candidates >= choosing.budget
    around, nodes = choosing.around, choosing.nodes
    assert around is None or (around.dtype is torch.int32 and around.is_contiguous())
    assert nodes is None or (nodes.dtype is torch.uint8 and nodes[0].is_contiguous())
    assert nodes is None or choosing.num_promising * NODE_LEAVES >= choosing.budget
    return (
        choosing.first,
        choosing.last - choosing.first,
        one.num_heads,
        one.num_kv_heads,
        one.head_dim,
        choosing.keys.shape[2],
        choosing.keys.data_ptr(),
        choosing.keys.stride(0),
        choosing.budget,
        choosing.max_candidates,
        0 if around is None else around.data_ptr(),
        0 if around is None else len(around),
        choosing.scanned.data_ptr(),
        choosing.scanned.stride(0),
        choosing.kept.data_ptr(),
        choosing.kept.stride(0),
        choosing.kept.shape[1] - choosing.budget - 3,
        choosing.scan_period,
        choosing.period,
        choosing.away,
        0 if nodes is None else nodes.data_ptr(),
        0 if nodes is None else nodes.stride(0),
        0 if nodes is None else nodes.shape[1],
        choosing.num_promising,
        ALPHA,
    )
