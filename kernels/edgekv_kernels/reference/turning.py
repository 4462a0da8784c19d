"""Extra rotations per leaf, in plain torch: keys stay as stored, the query is turned, or keys back by as much.

A row of turns [n, R] is R/2 cosines, then R/2 sines; pairs of dimensions as in `rope_`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def turned(q: torch.Tensor, turns: torch.Tensor, style: str) -> torch.Tensor:
    """Queries [T, Hq, D] turned once per row of turns [n, R] -> [n, T, Hq, D]."""
    half = turns.shape[1] // 2
    cos, sin = turns[:, None, None, :half], turns[:, None, None, half:]
    return _turn_(q.expand(len(turns), *q.shape).clone(), cos, sin, style)


def turned_back(keys: torch.Tensor, turns: torch.Tensor, style: str) -> torch.Tensor:
    """Keys [n, Hkv, 16, D] turned by the opposite of turns [n, R], because R(a) q . k = q . R(-a) k; float32."""
    half = turns.shape[1] // 2
    cos, sin = turns[:, None, None, :half], turns[:, None, None, half:]
    return _turn_(keys.float().clone(), cos, -sin, style)


def _turn_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, style: str) -> torch.Tensor:
    half = cos.shape[-1]
    rotated = x[..., : 2 * half]
    first, second = (
        (rotated[..., 0::2], rotated[..., 1::2])
        if style == "interleaved"
        else (rotated[..., :half], rotated[..., half:])
    )
    new_first, new_second = first * cos - second * sin, first * sin + second * cos
    first.copy_(new_first)
    second.copy_(new_second)
    return x
