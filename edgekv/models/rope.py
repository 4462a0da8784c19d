"""Rotary positions: the frequency vector of a model and the cos/sin rows of given positions.

Scaling (llama3 factors from the file, linear, yarn: arXiv 2309.00071) only changes the frequencies and, for
yarn, one amplitude. Angles are computed in float64 on demand: a table over a 128K window would cost 64 MB.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekv.models.config import ModelConfig

_STRETCH = 64  # positions made at once where one after the other is asked for: made singly, each took 0.07 ms


class Rope:
    """`rows(start, count)` gives cos and sin `[T, rope_dim/2]` float32 on the decoder's device."""

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
        self.frequencies = frequencies.numpy()
        self.style = config.rope_style
        self._device = device
        self._first, self._stretch = -_STRETCH, (torch.empty(0), torch.empty(0))

    def rows(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Cos and sin of positions `start` to `start + count - 1`: each `[count, rope_dim/2]` float32."""
        if count > 1:
            return self._rows(start, count)
        at = start % _STRETCH
        if start - at != self._first:
            self._first, self._stretch = start - at, self._rows(start - at, _STRETCH)
        cos, sin = self._stretch
        return cos[at : at + 1], sin[at : at + 1]

    def _rows(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        cos, sin = self._circle(np.arange(start, start + count), self.amplitude)
        return cos.to(self._device), sin.to(self._device)

    def turn(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin of the rotation from a position to the one `offsets` int64 `[N]` later, `[N, rope_dim/2]`, in
        host memory.
        """
        return self._circle(offsets.numpy(), 1.0)

    def _circle(self, steps: NDArray[np.int64], amplitude: float) -> tuple[Tensor, Tensor]:
        angles = steps[:, None] * self.frequencies
        cos, sin = (
            (np.cos(angles) * amplitude).astype(np.float32),
            (np.sin(angles) * amplitude).astype(np.float32),
        )
        return torch.from_numpy(cos), torch.from_numpy(sin)


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
