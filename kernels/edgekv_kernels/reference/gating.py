"""SwiGLU in plain torch."""

from __future__ import annotations

import torch


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Write silu(gate) * up into `out` [T, F]; gate_up [T, 2F], gate first."""
    gate, up = gate_up.float().chunk(2, dim=1)
    out.copy_(torch.nn.functional.silu(gate) * up)
