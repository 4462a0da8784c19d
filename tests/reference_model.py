"""An independent fp32 transformer on weights decoded by the `gguf` package: the judge of our decoder.

Deliberately naive and written apart from the product: whole sequence at once, full causal mask, no cache.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor


class ReferenceModel:
    def __init__(self, path, config):
        self.c = config
        reader = gguf.GGUFReader(str(path))
        self.w = {
            t.name: torch.from_numpy(
                np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32).reshape(
                    tuple(reversed(t.shape.tolist()))
                )
            )
            for t in reader.tensors
        }

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.c.rms_eps) * self.w[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def rotate(self, x: Tensor) -> Tensor:
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

    @torch.inference_mode()
    def logits(self, token_ids) -> Tensor:
        """`[T, vocab]` float32."""
        c = self.c
        x = self.w["token_embd.weight"][torch.as_tensor(token_ids)]
        mask = torch.full((len(x), len(x)), float("-inf")).triu(1)
        for i in range(c.num_layers):
            p = f"blk.{i}."
            h = self.norm(x, p + "attn_norm.weight")
            q, k, v = (self.linear(h, p + f"attn_{n}").unflatten(-1, (-1, c.head_dim)) for n in "qkv")
            if p + "attn_q_norm.weight" in self.w:
                q, k = self.norm(q, p + "attn_q_norm.weight"), self.norm(k, p + "attn_k_norm.weight")
            q, k = self.rotate(q), self.rotate(k)
            group = c.num_heads // c.num_kv_heads
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            score = torch.einsum("thd,shd->hts", q, k) * c.head_dim**-0.5 + mask
            out = torch.einsum("hts,shd->thd", score.softmax(-1), v)
            x = x + self.linear(out.flatten(1), p + "attn_output")
            h = self.norm(x, p + "ffn_norm.weight")
            gate, up = self.linear(h, p + "ffn_gate"), self.linear(h, p + "ffn_up")
            x = x + self.linear(torch.nn.functional.silu(gate) * up, p + "ffn_down")
        head = "output.weight" if "output.weight" in self.w else "token_embd.weight"
        return self.norm(x, "output_norm.weight") @ self.w[head].T
