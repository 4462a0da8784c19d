"""An independent fp32 transformer on weights that the `gguf` package decoded: the judge of our decoder.

Deliberately naive and written apart from it: the whole sequence at once, a full causal mask, no cache. Knows
nothing of packed weights, kernels or pools. Memory: all weights in float32 and `[heads, T, T]` scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekv.models.config import ModelConfig


class ReferenceModel:
    """The model of one file, for sequences of a few thousand tokens."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.c = config
        reader = gguf.GGUFReader(str(path))
        self.w: dict[str, Tensor] = {
            t.name: torch.from_numpy(
                np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32).reshape(
                    tuple(reversed(t.shape.tolist()))
                )
            )
            for t in reader.tensors
        }

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """`[T, vocab]` float32."""
        return self.head(self.hidden(token_ids))

    @torch.inference_mode()
    def hidden(self, token_ids: Sequence[int]) -> Tensor:
        """`[T, hidden]` float32 before the last norm."""
        x = self.w["token_embd.weight"][torch.as_tensor(token_ids)]
        mask = torch.full((len(x), len(x)), float("-inf")).triu(1)
        for index in range(self.c.num_layers):
            prefix = f"blk.{index}."
            x = x + self._attention(self._norm(x, prefix + "attn_norm.weight"), prefix, mask)
            h = self._norm(x, prefix + "ffn_norm.weight")
            gate, up = self._linear(h, prefix + "ffn_gate"), self._linear(h, prefix + "ffn_up")
            x = x + self._linear(torch.nn.functional.silu(gate) * up, prefix + "ffn_down")
        return x

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """`[M, vocab]` float32 of `[M, hidden]`."""
        name = "output.weight" if "output.weight" in self.w else "token_embd.weight"
        return self._norm(hidden, "output_norm.weight") @ self.w[name].T

    def _attention(self, h: Tensor, prefix: str, mask: Tensor) -> Tensor:
        c = self.c
        q, k, v = (self._linear(h, prefix + f"attn_{n}").unflatten(-1, (-1, c.head_dim)) for n in "qkv")
        if prefix + "attn_q_norm.weight" in self.w:
            q = self._norm(q, prefix + "attn_q_norm.weight")
            k = self._norm(k, prefix + "attn_k_norm.weight")
        q, k = self._rotate(q), self._rotate(k)
        group = c.num_heads // c.num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        score = torch.einsum("thd,shd->hts", q, k) * c.head_dim**-0.5 + mask
        out = torch.einsum("hts,shd->thd", score.softmax(-1), v)
        return self._linear(out.flatten(1), prefix + "attn_output")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.c.rms_eps) * self.w[name]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def _rotate(self, x: Tensor) -> Tensor:
        c = self.c
        freqs = c.rope_theta ** (-torch.arange(0, c.rope_dim, 2, dtype=torch.float64) / c.rope_dim)
        if "rope_freqs.weight" in self.w:
            freqs = freqs / self.w["rope_freqs.weight"].double()
        if c.rope_scaling.type == "linear":
            freqs = freqs / c.rope_scaling.factor
        angle = torch.arange(len(x), dtype=torch.float64)[:, None, None] * freqs
        turn = torch.polar(torch.ones_like(angle), angle)
        if c.rope_style == "interleaved":
            z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * turn
            return torch.view_as_real(z).flatten(-2).float()
        a, b = x.double().chunk(2, -1)
        z = torch.complex(a, b) * turn
        return torch.cat([z.real, z.imag], -1).float()
