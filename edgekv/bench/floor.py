"""The least time that a decoded token can take: bytes to be read, over what was measured of memory and disk.

Knows sizes of weights, leaves and their abstracts; not how they are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import edgekv_kernels as kernels
from edgekv.cache.leaf import LEAF_TOKENS, num_columns
from edgekv.models.linear import Linear, weight_bytes
from edgekv.policies.selection.cascade import (
    CANDIDATES_BESIDE,
    KEPT,
    KEPT_BESIDE,
    MAX_CANDIDATES,
    scan_period,
    search_period,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekv.bench.setting import Setting
    from edgekv.models.decoder import Decoder
    from edgekv.models.linear import Stack

_CHUNK_COLUMNS = 64  # of what `leoam` refines first


def decode_floor(
    setting: Setting,
    machine: Mapping[str, object],
    context: int,
    attended: float,
    promoted_bytes: float = 0.0,
) -> float:
    """Seconds of one token that attends to `attended` tokens of `context`: the slowest link's, all working at once.

    `promoted_bytes` come from disk. Abstracts are read from host memory, also where the rest lies on a GPU.
    """
    host, device = machine["memory_read_gb_per_s"], machine.get("device_memory_read_gb_per_s")
    assert isinstance(host, float)
    kv = attended * setting.shape.column_bytes / LEAF_TOKENS
    index = index_bytes_read(setting, context) if attended < context else 0
    read = bytes_per_token(setting.model.decoder) + kv
    if isinstance(device, float):
        seconds = max(read / (device * 1e9), index / (host * 1e9))
    else:
        seconds = (read + index) / (host * 1e9)
    disk = machine.get("disk_read_mb_per_s")
    if promoted_bytes and isinstance(disk, float):
        seconds = max(seconds, promoted_bytes / (disk * 1e6))
    return seconds


def index_bytes_read(setting: Setting, context: int) -> int:
    """Abstracts that the options' method reads for one token of all layers; see docs/selection.md."""
    config, shape = setting.config, setting.shape
    columns = num_columns(context)
    if columns * LEAF_TOKENS <= config.budget:
        return 0
    keys = kernels.key_bytes(shape.num_kv_heads, shape.head_dim)
    node = kernels.node_bytes(shape.num_kv_heads, shape.head_dim)
    match config.selection:
        case "window":
            layer = 0
        case "cascade":
            candidates, kept, every = MAX_CANDIDATES, KEPT, search_period(columns)
            if columns > MAX_CANDIDATES and context > setting.model.decoder.config.context_length:
                candidates, kept = CANDIDATES_BESIDE, KEPT_BESIDE  # as if words were named: never too many
            ranked = min(columns, candidates) / every + min(columns, kept) * (1 - 1 / every)
            ranked += columns / scan_period(columns) if columns > MAX_CANDIDATES else 0
            layer = int(ranked * keys)
        case "leoam":
            layer = columns // _CHUNK_COLUMNS * node
        case "oracle":
            layer = columns * shape.leaf_bytes
        case _:
            layer = columns * keys
    return layer * shape.num_layers


def bytes_per_token(decoder: Decoder) -> int:
    """Bytes of weights that one token reads: all layers and the head in packed form."""
    parts = [p for layer in decoder.layers for p in (layer.qkv, layer.attn_out, layer.gate_up, layer.down)]
    return sum(_packed_bytes(part) for part in [*parts, decoder.head])


def _packed_bytes(part: Linear | Stack) -> int:
    if isinstance(part, Linear):
        return weight_bytes(part.weight)
    return sum(weight_bytes(each.weight) for each in part.parts)
