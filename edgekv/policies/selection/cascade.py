"""The default: low-bit keys rank what a scan of all of them left (kv-path: selection).

A scan ranks every column. It takes place where the last tokens of a prompt are read, then for each layer once in
`SCAN_EVERY` tokens. In between only its best are searched, and between two searches only the best of these; where a
search takes in all columns there are, each token makes one. Nodes
of 8 leaves were the first sieve once: at 16,000 tokens they put a passkey that the keys rank among the first 50
into the worse half; at 32,000 a search by them chose 0.87 of the mass that is best, one of a scan's best 0.89. They
still serve the blocks of a long prompt, which scans would make quadratic, and a question to a conversation whose
keys are on disk. There a few layers scan all the same and lend the others the nodes of their best columns: what one
layer finds sharp is what others look for (docs/selection.md).

Beyond the trained window a question goes by words. What its answer chooses beside the columns that these name is
little, so less is ranked for it, and at its first token most layers go by nodes until their turn to scan comes.

Sink and window take part in each head's softmax: without them heads that look nowhere else counted as much as those
that look far, and a needle was lost. Every token is ranked for: every second one only halved the time and lost a
needle that exact attention found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

import edgekv_kernels as kernels
from edgekv.policies.selection.selector import Selector
from edgekv.policies.selection.words import named_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from edgekv.policies.selection.selector import AbstractsLike, Step

SCAN_EVERY = 128  # tokens, per layer: every 32 led to half a hundredth more of the mass
LONGEST_COLUMNS = 4096  # beyond, half as often
SEARCH_EVERY = 4  # where there are more columns than a search takes in; half as often in long conversations
LONG_COLUMNS = 2048
SCAN_QUERIES = 8  # of the last tokens of a prompt, evenly spaced
MAX_CANDIDATES = 512  # what a scan leaves
MAX_CANDIDATES_ON_DISK = 256  # of a block
# Depths of layers that scan keys on disk; first ones first.
LENDERS = (7 / 15, 3 / 5, 1 / 3, 8 / 15, 2 / 5, 2 / 3)
MIN_LENDERS = 2
LENDERS_BYTES = 12 << 20  # of keys that they read in all, if there are more of them
LENT_NODES = 48  # by all of them
KEPT = 128  # columns that are ranked between two searches
# Of an answer that reads what its question's words name, and chooses few columns beside these:
CANDIDATES_BESIDE = 256
KEPT_BESIDE = 64
NODES_BESIDE = 32  # whose columns are ranked at its first token, by layers whose turn to search comes later
MARGIN = 2  # at least so many times the columns to choose, of candidates and of those kept


def search_period(
    num_columns: int, search_every: int = SEARCH_EVERY, num_candidates: int = MAX_CANDIDATES
) -> int:
    """Tokens between two searches of one layer. Each token searches where that takes in all columns there are: a
    novel's tokens are less than half as far from exact attention, for a tenth of the time.
    """
    if num_columns <= num_candidates:
        return 1
    return search_every if num_columns <= LONG_COLUMNS else 2 * search_every


def _rows() -> Tensor:
    return torch.empty((0, 0), dtype=torch.int32)


def scan_period(num_columns: int, scan_every: int = SCAN_EVERY) -> int:
    """Tokens between two scans of one layer."""
    return scan_every if num_columns <= LONGEST_COLUMNS else 2 * scan_every


def _no_columns() -> Tensor:
    return torch.empty(0, dtype=torch.int32)


def lenders(num_layers: int, layer_bytes: int) -> list[int]:
    """Layers that scan where keys are on disk, `layer_bytes` of each layer."""
    count = max(MIN_LENDERS, min(len(LENDERS), LENDERS_BYTES // max(1, layer_bytes)))
    return sorted({int(num_layers * depth + 0.01) for depth in LENDERS[:count]})


def _with_room(rows: Tensor, num_rows: int, width: int) -> Tensor:
    """At least so many rows, at least so wide, that begin as before."""
    before, wide = rows.shape
    if num_rows <= before and width <= wide:
        return rows
    grown = torch.zeros((max(before, num_rows), max(wide, width)), dtype=torch.int32)
    grown[:before, :wide] = rows
    return grown


@dataclass(slots=True)
class Cascade(Selector):
    """Ranks by the estimated attention mass, summed over heads and queries."""

    wants_keys: ClassVar[bool] = True
    max_candidates: int = MAX_CANDIDATES
    search_every: int = SEARCH_EVERY
    scan_every: int = SCAN_EVERY
    kept: int = KEPT
    words: Callable[[Sequence[int]], set[int]] = set
    # A layer's last choice by nodes: candidates again.
    _winners: dict[int, Tensor] = field(default_factory=dict)
    _lent: Tensor = field(default_factory=_no_columns)  # of the pass at hand
    _scanned: Tensor = field(default_factory=_rows)  # both of `Choosing`
    _kept: Tensor = field(default_factory=_rows)
    _has_named: bool = False  # whether words decided what the last question's pass read

    def select(self, step: Step) -> int:
        """See `Selector`."""
        if len(step.q) > 1:
            self._has_named = False  # a prompt that goes by mass
        self._make_room(step.layer + 1, step.num_columns)
        lending = self._lenders(step)
        if step.is_block or (lending and step.layer not in lending):
            self._forget(step.layer)
            count = self._select_by_nodes(step)
            self._winners[step.layer] = step.out[:count].clone()
            return count
        if not lending and len(step.q) == 1 and 0 < int(self._scanned[step.layer, 1]) <= step.columns.stop:
            choosing = self.choosing(step.abstracts, step.columns, step.num_columns, step.around)
            assert choosing is not None, "no keys are absent"
            best = self._best(step, choosing.searched(step.layer))
        else:
            self._kept[step.layer, 0] = 0  # of other queries: the next token searches again
            scanned = self._scan(step)
            best = self._best(step, scanned)
            if lending:
                self._lend(step, self._best(step, scanned, LENT_NODES // len(lending)))
        step.out[: len(best)] = best
        return len(best)

    def named(
        self, token_ids: Sequence[int], asked: Sequence[int], columns: range, num_columns: int
    ) -> Tensor:
        """See `Selector`. What earlier questions found is forgotten: the answer's first token looks anew."""
        found = torch.from_numpy(named_columns(token_ids, asked, columns, num_columns, self.words))
        self._has_named = len(found) > 0
        if self._has_named:
            self._scanned.zero_()
            self._kept.zero_()
        return found

    def choosing(
        self, abstracts: AbstractsLike, columns: range, num_columns: int, around: Tensor
    ) -> kernels.Choosing | None:
        """See `Selector`."""
        if abstracts.num_absent:
            return None
        keys, nodes = abstracts.all_keys, None
        self._make_room(len(keys), num_columns)
        most, kept = self._scanned.shape[1] - 2, self._kept.shape[1] - num_columns - 3
        if self._has_named and len(columns) > self.max_candidates:
            nodes = abstracts.all_nodes
            most = min(most, max(CANDIDATES_BESIDE, MARGIN * num_columns))
            kept = min(kept, max(KEPT_BESIDE, MARGIN * num_columns))
        return kernels.Choosing(
            keys=keys,
            first=columns.start,
            last=columns.stop,
            budget=num_columns,
            scanned=self._scanned[:, : most + 2],
            kept=self._kept[:, : kept + num_columns + 3],
            around=around,
            nodes=nodes,
            num_promising=NODES_BESIDE,
            scan_period=scan_period(len(columns), self.scan_every),
            period=search_period(len(columns), self.search_every, most),
        )

    def _make_room(self, num_layers: int, num_columns: int) -> None:
        """For what is chosen in so many layers."""
        most, kept = max(self.max_candidates, MARGIN * num_columns), max(self.kept, MARGIN * num_columns)
        self._scanned = _with_room(self._scanned, num_layers, most + 2)
        self._kept = _with_room(self._kept, num_layers, kept + num_columns + 3)

    def _forget(self, layer: int) -> None:
        """An answer to other queries must not search what these left: its first token scans."""
        self._scanned[layer, :2] = 0
        self._kept[layer, 0] = 0

    def _select_by_nodes(self, step: Step) -> int:
        """Columns of the most promising nodes, and of the last choice; keys on disk are brought of these only."""
        q, nodes, winners = step.q, step.abstracts.nodes(step.layer), self._winners.get(step.layer)
        first, last, most = step.columns.start, step.columns.stop, MARGIN * step.num_columns
        if step.abstracts.num_absent:
            if step.is_block:
                most = max(min(self.max_candidates, MAX_CANDIDATES_ON_DISK), most)
            else:
                winners = self._lent if winners is None else torch.cat((winners, self._lent)).unique()
            columns = kernels.candidate_columns(q, nodes, first, last, step.scale, most, winners, step.turns)
            best = self._best(step, columns)
            step.out[: len(best)] = best
            return len(best)
        return kernels.select_leaves(
            q,
            step.abstracts.keys(step.layer),
            first,
            last,
            step.num_columns,
            step.scale,
            step.out,
            nodes=nodes,
            max_candidates=max(self.max_candidates, most),
            extra=winners,
            around=step.around,
            turns=step.turns,
        )

    def _lenders(self, step: Step) -> list[int]:
        """Layers that scan for others as well, in a pass over a question; none where all keys are in memory."""
        if step.is_block or not step.abstracts.num_absent:
            return []
        keys = step.abstracts.all_keys
        if len(step.columns) <= self.max_candidates:
            return list(range(len(keys)))  # little to read
        found = lenders(len(keys), keys[0].nbytes)
        if step.layer <= found[0]:
            self._lent = _no_columns()
        return found

    def _lend(self, step: Step, best: Tensor) -> None:
        """Let later layers rank the nodes that these columns are in: keys are read by nodes anyway."""
        nodes = (best // kernels.NODE_LEAVES).unique() * kernels.NODE_LEAVES
        columns = (nodes[:, None] + torch.arange(kernels.NODE_LEAVES, dtype=torch.int32)).flatten()
        lent = columns[(columns >= step.columns.start) & (columns < step.columns.stop)]
        self._lent = torch.cat((self._lent, lent)).unique()

    def _best(self, step: Step, columns: Tensor, count: int | None = None) -> Tensor:
        """The best `count` of `columns`, as many as are to be chosen if not given; ascending."""
        mass = step.mass(step.q, columns)
        most = min(step.num_columns if count is None else count, len(columns))
        return columns[mass.topk(most).indices].sort().values

    def _scan(self, step: Step) -> Tensor:
        """Many of the best of all, ascending; they are remembered."""
        first, last = step.columns.start, step.columns.stop
        sample = torch.arange(len(step.q) - 1, -1, -max(1, len(step.q) // SCAN_QUERIES)).flip(0)
        mass, scanned = step.mass(step.q[sample]), self._scanned[step.layer]
        step.ranked[:] = [mass / (len(sample) * step.q.shape[1])]
        count = min(len(scanned) - 2, len(mass))
        best: Tensor = mass.topk(count).indices.sort().values.int() + first
        scanned[0], scanned[1] = count, last
        scanned[2 : 2 + count] = best
        return best

    def reset(self) -> None:
        """See `Selector`."""
        self._has_named = False
        self._winners.clear()
        self._scanned.zero_()
        self._kept.zero_()
