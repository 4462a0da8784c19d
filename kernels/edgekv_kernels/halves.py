"""The two halves of a decoder layer for one token, before and after attention: host side.

Knows a layer's weights and one token's vectors. Does not know where keys and values lie: what happens between
the halves is the caller's business. Blocks of tokens go through the single operations instead.

There is no Triton form: a half is several matrix products, each of which needs all results of the one before,
and a GPU's blocks cannot wait for each other inside a kernel. There the single operations are launched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.reference import halves as reference

if TYPE_CHECKING:
    from edgekv_kernels.packed import Packed4, Packed8
    from edgekv_kernels.rope import Style

_NO_MATRIX = (0,) * 9


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Weights [N, K], packed or bfloat16, and the bias float32 [N] added to each product."""

    weight: Packed4 | Packed8 | torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Outputs N."""
        return self.weight.shape[0]

    @property
    def native_job(self) -> tuple[int, ...]:
        """What the native kernels are told."""
        bias = 0 if self.bias is None else self.bias.data_ptr()
        if isinstance(self.weight, torch.Tensor):
            assert self.weight.dtype == torch.bfloat16, self.weight.dtype
            assert self.weight.is_contiguous()
            num_rows, num_columns = self.weight.shape
            return (16, self.weight.data_ptr(), 0, 0, num_rows, num_columns, 32, False, bias)
        return (*self.weight.native_job, bias)


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """All weights of one layer; outputs of several matrices (at most 3 in qkv, 2 in gate_up) stand side by side.

    Norms are float32 vectors; q_norm and k_norm [D] are given together or not at all. Weights must stay where
    they are: their addresses are taken once.
    """

    attn_norm: torch.Tensor
    qkv: tuple[Matrix, ...]
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    attn_out: Matrix
    ffn_norm: torch.Tensor
    gate_up: tuple[Matrix, ...]
    down: Matrix
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    rope_style: Style
    native: object = field(init=False, repr=False)

    def __post_init__(self) -> None:
        num_hidden, num_ffn = len(self.attn_norm), self.down.weight.shape[1]
        heads_width = self.num_heads * self.head_dim
        for part, num_columns in (
            *((part, num_hidden) for part in self.qkv),
            (self.attn_out, heads_width),
            *((part, num_hidden) for part in self.gate_up),
            (self.down, num_ffn),
        ):
            assert part.weight.shape[1] == num_columns, (part.weight.shape, num_columns)
            assert part.bias is None or part.bias.shape == (part.num_rows,)
        assert len(self.qkv) <= 3, len(self.qkv)
        assert len(self.gate_up) <= 2, len(self.gate_up)
        assert sum(p.num_rows for p in self.qkv) == self.qkv_width
        assert sum(p.num_rows for p in self.gate_up) == 2 * num_ffn
        assert self.attn_out.num_rows == self.down.num_rows == num_hidden
        assert (self.q_norm is None) == (self.k_norm is None)
        for norm in (self.attn_norm, self.ffn_norm, self.q_norm, self.k_norm):
            assert norm is None or (norm.dtype == torch.float32 and norm.is_contiguous())
        object.__setattr__(self, "native", self._native() if self.attn_norm.is_cpu else None)

    @property
    def qkv_width(self) -> int:
        """Values of q, k and v of one token."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def _native(self) -> object:
        """The native kernels' own description, or None without them."""
        if dispatch.native is None:
            return None
        qkv = [part.native_job for part in self.qkv] + [_NO_MATRIX] * (3 - len(self.qkv))
        gate_up = [part.native_job for part in self.gate_up] + [_NO_MATRIX] * (2 - len(self.gate_up))
        matrices = [*qkv, self.attn_out.native_job, *gate_up, self.down.native_job]
        norms = (self.attn_norm, self.ffn_norm, self.q_norm, self.k_norm)
        return dispatch.native.layer(
            *(0 if norm is None else norm.data_ptr() for norm in norms),
            len(self.attn_norm),
            self.down.weight.shape[1],
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.eps,
            self.rope_style == "interleaved",
            *chain.from_iterable(matrices),
        )


def before_attend(
    hidden: torch.Tensor, layer: LayerWeights, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norm, q, k, v with biases and norms per head, rotation: all that comes before attention.

    hidden: float32 [1, C] contiguous; cos, sin: float32 [1, R/2] contiguous, as `rope_` takes them.
    Returns q [1, Hq, D], k and v [1, Hkv, D], float32, q and k rotated: three slices of one row.
    """
    assert hidden.shape == (1, len(layer.attn_norm)), hidden.shape
    assert cos.shape == sin.shape, (cos.shape, sin.shape)
    form = dispatch.form_of(hidden)
    if form == "native":
        out = torch.empty(1, layer.qkv_width)
        dispatch.native.before_attend(
            layer.native, hidden.data_ptr(), cos.data_ptr(), sin.data_ptr(), cos.shape[1], out.data_ptr()
        )
    else:
        out = reference.before_attend(hidden, layer, cos, sin)
    heads = out.view(1, -1, layer.head_dim)
    q, k, v = heads.split_with_sizes((layer.num_heads, layer.num_kv_heads, layer.num_kv_heads), 1)
    return q, k, v


def after_attend_(hidden: torch.Tensor, attended: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
    """Output matrix, residual, norm, gated MLP, residual: adds to hidden float32 [1, C] and returns it.

    attended: float32 [1, Hq, D] contiguous, what attention returned.
    """
    assert hidden.shape == (1, len(layer.attn_norm)), hidden.shape
    assert attended.shape == (1, layer.num_heads, layer.head_dim), attended.shape
    form = dispatch.form_of(hidden)
    if form == "native":
        assert attended.is_contiguous()
        dispatch.native.after_attend(layer.native, hidden.data_ptr(), attended.data_ptr())
    else:
        reference.after_attend_(hidden, attended, layer)
    return hidden
