"""One token through all layers: host side.

`TokenPass` describes what attention of one token needs in every layer: where keys and values go, which columns are
attended, how some of them are chosen. Called layer by layer it is the plain form; `pass_layers_` runs all layers in
one native call, which stops only where a leaf to be read is not in memory.
Knows slots, columns and rows of the index. Does not know tiers, budgets' reasons or positions.

There is no Triton form: every product needs all results of the one before (see `halves`). On CUDA the single
operations run, through the plain form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.abstracts import MAX_DIM
from edgekv_kernels.attention import attend_leaves
from edgekv_kernels.halves import after_attend_, before_attend
from edgekv_kernels.kv import LEAF_TOKENS, append_kv
from edgekv_kernels.selection import score_among
from edgekv_kernels.turns import NOT_TURNED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekv_kernels.halves import LayerWeights
    from edgekv_kernels.turns import Turns

MAX_LAYERS = 1024  # of the native form


@dataclass(frozen=True, slots=True, eq=False)
class Choosing:
    """Which `budget` columns of [first, last) are attended beside the fixed ones: those of most estimated mass.

    keys: uint8 [num_layers, num_columns, Hkv * (6 D + 8)], rows contiguous within a layer. around: int32 [n], as
    `select_leaves` takes them.

    Where there are more columns than a row of `scanned` has room for, a layer ranks all of them only in one of
    `scan_period` passes (layers take turns): the best n go to its row, int32 [num_layers, n + 2]: how many, the
    range's end, they. In one of `period` passes it searches: it ranks these, what it kept, and the columns that
    came since. The best m, the first of all and what follows the chosen ones are kept, `kept` int32 [num_layers,
    m + budget + 3] with m >= budget: likewise. In between it ranks those and the columns that came since.
    A count of 0: nothing is known yet. `phase` is a number of each pass. The mass of a leaf that is not in memory
    counts `away` times where columns are chosen: one that has to be read displaces only what weighs clearly less.
    """

    keys: torch.Tensor
    first: int
    last: int
    budget: int
    scanned: torch.Tensor
    kept: torch.Tensor
    around: torch.Tensor | None = None
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
        scanned, kept = self.scanned[layer], self.kept[layer]
        searches = bool(kept[0] == 0 or (layer + phase) % self.period == 0)
        share = layer * self.scan_period // len(self.kept)
        is_long = count > self.max_candidates
        scans = is_long and bool(scanned[0] == 0 or (share + phase) % self.scan_period == 0)
        ranks_all = scans or (searches and not is_long)
        if ranks_all:
            searches, columns = True, torch.arange(self.first, self.last, dtype=torch.int32)
        elif searches:
            columns = self.searched(layer)
        else:
            columns = self._listed(kept)
        bounds = self.first, self.last
        mass = score_among(q, self.keys[layer], columns, self.around, *bounds, scale, turns)
        if scans:
            _note(scanned, _best_of(mass, columns, self.max_candidates), self.last)
        weighed = torch.where(where.index_select(0, columns) < 0, mass * self.away, mass)
        weighed[torch.isin(columns, named)] = -1.0
        best = _best_of(weighed, columns, self.budget)
        best = best[~torch.isin(best, named)]
        if ranks_all:
            lost = mass.sum() - mass[torch.cat((best, named)) - self.first].sum()
            measured += torch.stack([1 - lost / q.shape[1], torch.ones(())])
        if searches:
            most = _best_of(mass, columns, len(kept) - 3 - self.budget)
            most = torch.cat((most, torch.tensor([self.first]), best[best + 1 < self.last] + 1)).unique()
            _note(kept, most, self.last)
        out[: len(best)] = best
        return len(best)

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


def _note(row: torch.Tensor, columns: torch.Tensor, end: int) -> None:
    """How many, the range's end, they."""
    row[0], row[1] = len(columns), end
    row[2 : 2 + len(columns)] = columns


def _best_of(mass: torch.Tensor, columns: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` columns of most mass, ascending; all where there are fewer."""
    return columns[mass.topk(min(count, len(columns))).indices].sort().values


@dataclass(slots=True, eq=False)
class TokenPass:
    """Attention of one token in every layer; called as (layer, q, k, v) -> out, float32 [1, H, D] each, rotated.

    pool, written: bfloat16 [num_slots, 2, Hkv, 16, D], read from and appended to: slot writes[layer] (int32
    [num_layers, 1]) at token `offset`. where: int32 [num_layers, num_columns], slots in `pool`, negative where a
    leaf is not in memory. fixed: int32 [n], columns attended anyway and so not chosen; the last lacks its last
    `num_missing` tokens. turns: a row for every column, or None.
    reach(layer, columns): brings the missing ones of `columns` (int32) and updates `where`.
    measured: float32 [2], where a layer that ranks all columns adds the share of its attention that falls on what
    is chosen and on `around`, and 1: of the attention to all columns to choose from and `around`, by low-bit keys.
    After the pass `listed[layer, : counts[layer] + n]` are the columns that were attended, chosen ones first.

    phase: see `Choosing`; the token's number, say. For the next token of the same leaf `offset`, `num_missing`,
    `turns` and `phase` may be set and the pass run again; all else stays as it was at the first run.

    q, k, v, pool, written and writes lie on one device. What is chosen from and by (where, fixed, turns, choosing)
    lies in host memory: on CUDA each layer's query comes here, slots and turns of what is attended go there.
    """

    pool: torch.Tensor
    where: torch.Tensor
    written: torch.Tensor
    writes: torch.Tensor
    offset: int
    fixed: torch.Tensor
    num_missing: int
    scale: float
    turns: Turns | None
    choosing: Choosing | None
    reach: Callable[[int, torch.Tensor], None]
    phase: int = 0
    measured: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    listed: torch.Tensor = field(init=False)
    counts: torch.Tensor = field(init=False)
    native: _Native | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        num_layers, room = len(self.where), 0 if self.choosing is None else self.choosing.budget
        self.listed = torch.empty((num_layers, room + len(self.fixed)), dtype=torch.int32)
        self.counts = torch.zeros(num_layers, dtype=torch.int32)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The plain form of one layer."""
        append_kv(self.written, self.writes[layer], self.offset, k, v)
        row = self.listed[layer]
        chosen = 0
        if self.choosing is not None:
            chosen = self.choosing.of(
                layer,
                q.cpu(),
                self.scale,
                row,
                self.turns,
                self.phase,
                self.where[layer],
                self.measured,
                self.fixed,
            )
        self.counts[layer] = chosen
        row[chosen : chosen + len(self.fixed)] = self.fixed
        columns = self.columns(layer)
        slots = self.where[layer].index_select(0, columns)
        if (slots < 0).any():
            self.reach(layer, columns)
            slots = self.where[layer].index_select(0, columns)
        device = self.pool.device
        turns = None if self.turns is None else self.turns.at(columns).to(device)
        num_tokens = len(columns) * LEAF_TOKENS - self.num_missing
        return attend_leaves(q, self.pool, slots.to(device), num_tokens, self.scale, turns=turns)[0]

    def columns(self, layer: int) -> torch.Tensor:
        """What the layer attended to, int32."""
        return self.listed[layer, : int(self.counts[layer]) + len(self.fixed)]


def pass_layers_(
    hidden: torch.Tensor,
    layers: Sequence[LayerWeights],
    cos: torch.Tensor,
    sin: torch.Tensor,
    attend: TokenPass | Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Take hidden float32 [1, C] of one token through all `layers`, in place; cos, sin as in `before_attend`.

    `attend` that is no `TokenPass` is called in each layer, as that would be.
    """
    if isinstance(attend, TokenPass) and dispatch.form_of(hidden) == "native" and _fits(layers[0], attend):
        return _pass_native(hidden, layers, cos, sin, attend)
    for index, layer in enumerate(layers):
        q, k, v = before_attend(hidden, layer, cos, sin)
        after_attend_(hidden, attend(index, q, k, v), layer)
    return hidden


def _fits(layer: LayerWeights, attend: TokenPass) -> bool:
    return (
        layer.head_dim % 16 == 0
        and layer.head_dim <= MAX_DIM
        and len(attend.where) <= MAX_LAYERS
        and attend.pool.is_cpu
    )


@dataclass(frozen=True, slots=True)
class _Native:
    """What stays the same while a pass is run again: as the native form takes it, and what that points into."""

    layers: tuple[object, ...]
    place: tuple[int | float, ...]
    choice: tuple[int | float, ...] | None
    memory: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, layers: Sequence[LayerWeights], attend: TokenPass) -> _Native:
        one = layers[0]
        assert attend.pool.shape[2:] == (one.num_kv_heads, LEAF_TOKENS, one.head_dim), attend.pool.shape
        assert attend.where.stride(1) == 1
        assert attend.writes.shape == (len(layers), 1), attend.writes.shape
        for part in (attend.pool, attend.written, attend.writes, attend.fixed):
            assert part.is_contiguous()
        for part in (attend.where, attend.writes, attend.fixed):
            assert part.dtype is torch.int32, part.dtype
        scratch = torch.empty(one.qkv_width + one.num_heads * (one.head_dim + 1))
        qkv = scratch.data_ptr()
        attended = qkv + 4 * one.qkv_width
        places = torch.empty(2 * attend.listed.shape[1], dtype=torch.int32)  # slots and rows of turns
        place = (
            qkv,
            attended,
            attended + 4 * one.num_heads * one.head_dim,
            attend.pool.data_ptr(),
            attend.where.data_ptr(),
            attend.where.stride(0),
            attend.written.data_ptr(),
            attend.writes.data_ptr(),
            attend.fixed.data_ptr(),
            len(attend.fixed),
            attend.listed.data_ptr(),
            attend.counts.data_ptr(),
            attend.listed.stride(0),
            places.data_ptr(),
            attend.scale,
            attend.measured.data_ptr(),
        )
        choice = None if attend.choosing is None else _choice(one, attend.choosing)
        return cls(tuple(layer.native for layer in layers), place, choice, (scratch, places))


def _pass_native(
    hidden: torch.Tensor,
    layers: Sequence[LayerWeights],
    cos: torch.Tensor,
    sin: torch.Tensor,
    attend: TokenPass,
) -> torch.Tensor:
    if attend.native is None:
        attend.native = _Native.of(layers, attend)
    same, turns = attend.native, attend.turns
    assert hidden.shape == (1, layers[0].attn_norm.shape[0]), hidden.shape
    assert cos.shape == sin.shape, (cos.shape, sin.shape)
    assert hidden.is_contiguous()
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    layer, attends = 0, False
    while True:
        layer = dispatch.native.pass_layers(
            same.layers,
            layer,
            attends,
            hidden.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            cos.shape[1],
            attend.offset,
            attend.num_missing,
            attend.phase,
            NOT_TURNED if turns is None else turns.native(layers[0].head_dim),
            same.place,
            same.choice,
        )
        if layer == len(same.layers):
            return hidden
        attend.reach(layer, attend.columns(layer))
        attends = True


def _choice(one: LayerWeights, choosing: Choosing) -> tuple[int | float, ...]:
    """What the native form is told of the choice."""
    assert 0 <= choosing.first <= choosing.last <= choosing.keys.shape[1]
    assert choosing.keys[0].is_contiguous()
    assert choosing.kept.dtype is choosing.scanned.dtype is torch.int32
    assert choosing.kept.stride(1) == choosing.scanned.stride(1) == 1
    assert choosing.kept.shape[1] >= 2 * choosing.budget + 3
    assert choosing.max_candidates >= choosing.budget
    around = choosing.around
    assert around is None or (around.dtype is torch.int32 and around.is_contiguous())
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
    )
