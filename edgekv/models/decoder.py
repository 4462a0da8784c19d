"""The transformer of llama, qwen2 and qwen3, on one screen.

Knows weights and arithmetic. Does not know where keys and values lie: the caller hands in `attend`, which
stores this layer's new keys and values and returns the attention output (house rule 0). Of one token it may be a
`TokenPass`, which the kernels can follow through all layers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import edgekv_kernels as kernels
from edgekv.models.linear import FEW_ROWS

if TYPE_CHECKING:
    from edgekv.models.config import ModelConfig
    from edgekv.models.linear import Linear, Stack
    from edgekv.models.rope import Rope

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, D], all float32, q and k rotated) -> out [T, Hq, D]."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one block. `qkv` gives q, k, v side by side; `gate_up` the two halves of the gated MLP."""

    attn_norm: Tensor
    qkv: Linear | Stack
    q_norm: Tensor | None
    k_norm: Tensor | None
    attn_out: Linear
    ffn_norm: Tensor
    gate_up: Linear | Stack
    down: Linear
    one_token: kernels.LayerWeights  # the same weights, as the kernels of a single token take them


@dataclass(frozen=True, slots=True)
class Decoder:
    """All weights of a model; stateless, so one decoder serves every sequence."""

    config: ModelConfig
    embedding: Linear
    layers: tuple[Layer, ...]
    final_norm: Tensor
    head: Linear
    rope: Rope
    device: torch.device

    def forward(self, token_ids: Sequence[int], start: int, attend: Attend) -> Tensor:
        """Hidden states `[T, hidden]` float32 of `token_ids` at positions `start`, `start + 1` and so on."""
        cos, sin = self.rope.rows(start, len(token_ids))
        if len(token_ids) == 1:
            hidden = self.embedding.row(token_ids[0])
            # all layers at once: many small calls would take longer than their arithmetic
            one_token = [layer.one_token for layer in self.layers]
            return kernels.pass_layers_(hidden, one_token, cos, sin, attend)
        hidden = self.embedding.rows(torch.tensor(token_ids, dtype=torch.int64, device=self.device))
        dtype = torch.float32 if len(token_ids) <= FEW_ROWS else torch.bfloat16  # what the matrices take
        for index, layer in enumerate(self.layers):
            x = kernels.rms_norm(hidden, layer.attn_norm, self.config.rms_eps, dtype)
            q, k, v = self._heads(layer, layer.qkv(x))
            kernels.rope_(q, cos, sin, self.rope.style)
            kernels.rope_(k, cos, sin, self.rope.style)
            layer.attn_out.add_to(hidden, attend(index, q, k, v).flatten(1))
            x = kernels.rms_norm(hidden, layer.ffn_norm, self.config.rms_eps, dtype)
            layer.down.add_to(hidden, kernels.swiglu(layer.gate_up(x), dtype))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """`[M, vocab]` float32 of hidden states `[M, hidden]`."""
        return self.head.precise(kernels.rms_norm(hidden, self.final_norm, self.config.rms_eps))

    def _heads(self, layer: Layer, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split `[T, (Hq + 2 Hkv) * D]` into q, k, v `[T, H, D]`, normalised per head where the model does."""
        c = self.config
        sizes = [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
        q, k, v = (part.unflatten(1, (-1, c.head_dim)) for part in qkv.split(sizes, dim=1))
        if layer.q_norm is not None and layer.k_norm is not None:
            q = kernels.rms_norm(q, layer.q_norm, c.rms_eps)
            k = kernels.rms_norm(k, layer.k_norm, c.rms_eps)
        return q, k, v
