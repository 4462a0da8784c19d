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
from edgekv_kernels.choosing import native_choice
from edgekv_kernels.halves import after_attend_, before_attend
from edgekv_kernels.kv import LEAF_TOKENS, append_kv
from edgekv_kernels.turns import NOT_TURNED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekv_kernels.choosing import Choosing
    from edgekv_kernels.halves import LayerWeights
    from edgekv_kernels.turns import Turns

MAX_LAYERS = 1024  # of the native form


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
        choice = None if attend.choosing is None else native_choice(one, attend.choosing)
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
