"""RMSNorm in plain torch."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """Write x / sqrt(mean(x^2) + eps) * weight into `out`; x [..., C], weight [C]."""
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    out.copy_(x * scale * weight)
