"""A checked GGUF file -> a Decoder, and how many bytes that takes in each weights mode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from edgekv.models.decoder import Decoder, Layer
from edgekv.models.linear import Linear, Scratch, Stack, join, place
from edgekv.models.packing import decode, pack
from edgekv.models.rope import Rope
from edgekv_kernels import LayerWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.models.config import ModelConfig
    from edgekv.models.gguf import GGUFFile
    from edgekv.models.packing import Packed

WeightsMode = Literal["compact", "fast"]


@dataclass(frozen=True, slots=True)
class Loader:
    """Reads tensors of one file onto one device."""

    file: GGUFFile
    config: ModelConfig
    device: torch.device
    mode: WeightsMode
    scratch: Scratch

    def vector(self, name: str) -> Tensor | None:
        """A 1-D tensor in float32, or None when the file has none of that name."""
        info = self.file.tensors.get(name)
        if info is None:
            return None
        width = info.shape[0]
        return decode(self.file.tensor_bytes(name), info.ggml_type, 1, width, torch.float32)[0].to(
            self.device
        )

    def need(self, name: str) -> Tensor:
        """A 1-D tensor that every file of this architecture has (checked before)."""
        vector = self.vector(name)
        assert vector is not None, name
        return vector

    def packed(self, name: str) -> Packed:
        """A matrix in packed form on the device. ggml shapes are (inputs, outputs)."""
        info = self.file.tensors[name]
        num_columns, num_rows = info.shape
        weight = pack(self.file.tensor_bytes(name), info.ggml_type, num_rows, num_columns)
        return weight if self.device.type == "cpu" else place(weight, self.device)

    def linear(self, name: str, *, wide: bool = True) -> Linear:
        """One matrix with its bias. `wide=False` never keeps a 16-bit copy (embedding, head)."""
        bias = self.vector(name.replace(".weight", ".bias"))
        keep = wide and self.mode == "fast"
        return Linear(self.packed(name), bias, self.scratch, keep_wide=keep)

    def joined(self, names: Sequence[str]) -> Linear | Stack:
        """Matrices of one input as one, where their codes allow."""
        weight = join([self.packed(name) for name in names])
        biases = [self.vector(name.replace(".weight", ".bias")) for name in names]
        if weight is None or (any(b is None for b in biases) and any(b is not None for b in biases)):
            return Stack([self.linear(name) for name in names])
        given = [b for b in biases if b is not None]
        bias = torch.cat(given) if given else None
        return Linear(weight, bias, self.scratch, keep_wide=self.mode == "fast")


def load_decoder(file: GGUFFile, config: ModelConfig, device: torch.device, mode: WeightsMode) -> Decoder:
    """Build the decoder; the file's tensors were checked against `expected_tensors(config)` before."""
    loader = Loader(file, config, device, mode, Scratch(device))
    embedding = loader.linear("token_embd.weight", wide=False)
    return Decoder(
        config=config,
        embedding=embedding,
        layers=tuple(_layer(loader, f"blk.{index}.") for index in range(config.num_layers)),
        final_norm=loader.need("output_norm.weight"),
        head=embedding if config.tied_head else loader.linear("output.weight", wide=False),
        rope=Rope(config, loader.vector("rope_freqs.weight"), device),
        device=device,
    )


def _layer(loader: Loader, prefix: str) -> Layer:
    c = loader.config
    attn_norm, ffn_norm = (loader.need(f"{prefix}{part}_norm.weight") for part in ("attn", "ffn"))
    q_norm, k_norm = (loader.vector(f"{prefix}attn_{part}_norm.weight") for part in "qk")
    qkv = loader.joined([f"{prefix}attn_{part}.weight" for part in "qkv"])
    attn_out = loader.linear(prefix + "attn_output.weight")
    gate_up = loader.joined([f"{prefix}ffn_{part}.weight" for part in ("gate", "up")])
    down = loader.linear(prefix + "ffn_down.weight")
    one_token = LayerWeights(
        attn_norm=attn_norm,
        qkv=qkv.matrices,
        q_norm=q_norm,
        k_norm=k_norm,
        attn_out=attn_out.matrices[0],
        ffn_norm=ffn_norm,
        gate_up=gate_up.matrices,
        down=down.matrices[0],
        num_heads=c.num_heads,
        num_kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        eps=c.rms_eps,
        rope_style=c.rope_style,
    )
    return Layer(attn_norm, qkv, q_norm, k_norm, attn_out, ffn_norm, gate_up, down, one_token)


def decoder_bytes(decoder: Decoder) -> int:
    """Bytes of all weights in memory, 16-bit copies included."""
    total = decoder.embedding.num_bytes + decoder.final_norm.nbytes
    if decoder.head is not decoder.embedding:
        total += decoder.head.num_bytes
    for layer in decoder.layers:
        total += sum(part.num_bytes for part in (layer.qkv, layer.attn_out, layer.gate_up, layer.down))
        total += layer.attn_norm.nbytes + layer.ffn_norm.nbytes
    return total


def choose_mode(file: GGUFFile, wanted: str, free_bytes: int) -> tuple[WeightsMode, str]:
    """The weights mode and the reason for it: `fast` when the 16-bit copies leave half of free memory free."""
    if wanted == "compact":
        return "compact", "asked for"
    if wanted == "fast":
        return "fast", "asked for"
    values = sum(math.prod(info.shape) for name, info in file.tensors.items() if name.startswith("blk."))
    needed = 2 * values + sum(info.num_bytes for info in file.tensors.values())
    mib = needed >> 20
    if needed * 2 <= free_bytes:
        return "fast", f"16-bit copies need {mib} MiB of {free_bytes >> 20} MiB free"
    return "compact", f"16-bit copies would need {mib} MiB of {free_bytes >> 20} MiB free"
