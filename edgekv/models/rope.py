"""Rotary positions: the frequency vector of a model and the cos/sin rows of given positions.

Scaling (llama3 factors from the file, linear, yarn: arXiv 2309.00071) only changes the frequencies and, for
yarn, one amplitude. Angles are computed in float64 on demand: a table over a 128K window would cost 64 MB.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgekv.models.config import ModelConfig


class Rope:
    """`rows(positions)` gives cos and sin `[T, rope_dim/2]` float32 on the decoder's device."""

    def __init__(self, config: ModelConfig, factors: Tensor | None, device: torch.device) -> None:
        half = config.rope_dim // 2
        exponent = torch.arange(half, dtype=torch.float64) * 2 / config.rope_dim
        frequencies = config.rope_theta**-exponent
        self.amplitude = 1.0
        if factors is not None:
            frequencies = frequencies / factors.to(torch.float64)
        scaling = config.rope_scaling
        if scaling.type == "linear":
            frequencies = frequencies / scaling.factor
        elif scaling.type == "yarn":
            frequencies, self.amplitude = _yarn(config, frequencies)
        self.frequencies = frequencies.to(device)
        self.style = config.rope_style

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin of `positions` int64 `[T]`: each `[T, rope_dim/2]` float32."""
        angles = positions.to(torch.float64)[:, None] * self.frequencies
        return (
            (angles.cos() * self.amplitude).to(torch.float32),
            (angles.sin() * self.amplitude).to(torch.float32),
        )

    def turn(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin of the rotation from a position to the one `offsets` int64 `[N]` later, `[N, rope_dim/2]`."""
        angles = offsets.to(torch.float64)[:, None] * self.frequencies.cpu()
        return angles.cos().to(torch.float32), angles.sin().to(torch.float32)


def _yarn(config: ModelConfig, frequencies: Tensor) -> tuple[Tensor, float]:
    """Frequencies blended between interpolated (slow channels) and true (fast ones), and the amplitude."""
    scaling = config.rope_scaling

    def channel(turns: float) -> float:
        """The channel pair that makes `turns` rotations over the original window."""
        span = scaling.original_context / (turns * 2 * math.pi)
        return config.rope_dim * math.log(span) / (2 * math.log(config.rope_theta))

    low = max(0.0, math.floor(channel(scaling.beta_fast)))
    high = min(config.rope_dim - 1.0, math.ceil(channel(scaling.beta_slow)))
    index = torch.arange(len(frequencies), dtype=torch.float64)
    true_share = (1 - ((index - low) / max(0.001, high - low)).clamp(0, 1)) * scaling.ext_factor
    blended = frequencies / scaling.factor * (1 - true_share) + frequencies * true_share
    return blended, scaling.attn_factor * (1 + 0.1 * math.log(scaling.factor))
