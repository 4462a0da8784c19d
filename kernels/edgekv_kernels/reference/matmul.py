"""Products with packed weights in plain torch: unpack, multiply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgekv_kernels.packed import Packed4, Packed8


def unpack4(w: Packed4, out: torch.Tensor) -> None:
    """Write scale * quant + offset into `out` [N, K]."""
    packed = w.quants.unflatten(1, (-1, 16))
    quants = torch.cat((packed & 15, packed >> 4), dim=2).float()
    out.copy_((quants * w.scale.float()[..., None] + w.offset.float()[..., None]).flatten(1))


def unpack8(w: Packed8, out: torch.Tensor) -> None:
    """Write scale * quant + offset into `out` [N, K]."""
    weights = w.quants.unflatten(1, (-1, w.group)).float() * w.scale.float()[..., None]
    if w.offset is not None:
        weights += w.offset.float()[..., None]
    out.copy_(weights.flatten(1))


def matmul4(x: torch.Tensor, w: Packed4, out: torch.Tensor, accumulate: bool) -> None:
    """Write (or add) x @ w.T into `out` [M, N]; x [M, K]."""
    weights = torch.empty(w.shape, device=x.device)
    unpack4(w, weights)
    matmul16(x, weights, out, accumulate)


def matmul8(x: torch.Tensor, w: Packed8, out: torch.Tensor, accumulate: bool) -> None:
    """Write (or add) x @ w.T into `out` [M, N]; x [M, K]."""
    weights = torch.empty(w.shape, device=x.device)
    unpack8(w, weights)
    matmul16(x, weights, out, accumulate)


def matmul16(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, accumulate: bool) -> None:
    """Write (or add) x @ w.T into `out` [M, N]; x [M, K], w [N, K] of any float type."""
    product = x @ w.float().T
    if accumulate:
        out += product
    else:
        out.copy_(product)
