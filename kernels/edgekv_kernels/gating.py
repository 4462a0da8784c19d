"""SwiGLU: host side."""

from __future__ import annotations

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.reference import gating as reference


def swiglu(
    gate_up: torch.Tensor, out_dtype: torch.dtype = torch.float32, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`silu(gate) * up`.

    gate_up: float32 or bfloat16 [T, 2F] contiguous, gate in the first half. Returns `out` or a new [T, F]
    tensor of `out_dtype` (float32 or bfloat16).
    """
    num_tokens, twice = gate_up.shape
    if out is None:
        out = torch.empty((num_tokens, twice // 2), dtype=out_dtype, device=gate_up.device)
    form = dispatch.form_of(gate_up)
    if form == "native":
        assert gate_up.is_contiguous()
        assert out.is_contiguous()
        dispatch.native.swiglu(
            gate_up.data_ptr(),
            out.data_ptr(),
            num_tokens,
            twice // 2,
            gate_up.dtype == torch.bfloat16,
            out.dtype == torch.bfloat16,
        )
    elif form == "triton":
        dispatch.triton_form("gating").swiglu(gate_up, out)
    else:
        reference.swiglu(gate_up, out)
    return out
