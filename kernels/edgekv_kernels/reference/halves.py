"""The two halves of a decoder layer for one token in plain torch, from the other references."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekv_kernels.packed import Packed4
from edgekv_kernels.reference import gating, matmul, norm, rope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv_kernels.halves import LayerWeights, Matrix


def before_attend(
    hidden: torch.Tensor, layer: LayerWeights, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """q, k, v side by side, [1, (Hq + 2 Hkv) D]; hidden [1, C], cos and sin [1, R/2]."""
    out = _products(_normed(hidden, layer.attn_norm, layer.eps), layer.qkv)
    heads = out.view(-1, layer.head_dim)
    q, k = heads.split((layer.num_heads, layer.num_kv_heads, layer.num_kv_heads))[:2]
    for part, weight in ((q, layer.q_norm), (k, layer.k_norm)):
        if weight is not None:
            norm.rms_norm(part, weight, layer.eps, part)
        rope.rope_(part[None], cos, sin, layer.rope_style)
    return out


def after_attend_(hidden: torch.Tensor, attended: torch.Tensor, layer: LayerWeights) -> None:
    """Add both residuals to hidden [1, C]; attended [1, Hq, D]."""
    hidden += _products(attended.flatten(1), (layer.attn_out,))
    gate_up = _products(_normed(hidden, layer.ffn_norm, layer.eps), layer.gate_up)
    gated = torch.empty_like(gate_up[:, : gate_up.shape[1] // 2]).contiguous()
    gating.swiglu(gate_up, gated)
    hidden += _products(gated, (layer.down,))


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty_like(x)
    norm.rms_norm(x, weight, eps, out)
    return out


def _products(x: torch.Tensor, parts: Sequence[Matrix]) -> torch.Tensor:
    """Outputs [1, sum of N] of all matrices, biases added."""
    return torch.cat([_product(x, part) for part in parts], dim=1)


def _product(x: torch.Tensor, part: Matrix) -> torch.Tensor:
    out = torch.empty((len(x), part.num_rows), device=x.device)
    if isinstance(part.weight, torch.Tensor):
        matmul.matmul16(x, part.weight, out, accumulate=False)
    elif isinstance(part.weight, Packed4):
        matmul.matmul4(x, part.weight, out, accumulate=False)
    else:
        matmul.matmul8(x, part.weight, out, accumulate=False)
    return out if part.bias is None else out.add_(part.bias)
