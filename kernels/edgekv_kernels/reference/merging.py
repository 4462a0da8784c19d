"""Merging partial attention results in plain torch."""

from __future__ import annotations

import torch


def merge_(out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor) -> None:
    """Merge (out_b, lse_b) into (out_a, lse_a) in place; out [T, H, D], lse [T, H]."""
    merged = torch.logaddexp(lse_a, lse_b)
    # both empty: -inf - -inf is NaN, the weights are 0
    weight_a = torch.nan_to_num((lse_a - merged).exp_(), nan=0.0)
    weight_b = torch.nan_to_num((lse_b - merged).exp_(), nan=0.0)
    out_a.mul_(weight_a[..., None]).add_(out_b * weight_b[..., None])
    lse_a.copy_(merged)
