"""Rotary position embedding in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rope_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, style: str) -> None:
    """Rotate the first R dimensions of x [T, H, D] in place; cos, sin [T, R/2]."""
    half = cos.shape[1]
    rotated = x[..., : 2 * half]
    first, second = (
        (rotated[..., 0::2], rotated[..., 1::2])
        if style == "interleaved"
        else (rotated[..., :half], rotated[..., half:])
    )
    c, s = cos[:, None, :], sin[:, None, :]
    new_first = first * c - second * s
    new_second = first * s + second * c
    first.copy_(new_first)
    second.copy_(new_second)
