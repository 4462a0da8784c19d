"""Abstracts of keys: low-bit keys of a leaf, minimum, maximum and mean of a node: host side.

They are read to select and never to attend. Rows are bytes, the same in memory and on disk, little-endian:

- low-bit keys of a leaf, per kv head 6 D + 8 bytes, heads one after the other: float32 low_scale, float32
  step_scale, int8 low[D], uint8 step[D], codes[4 D]; key[t][d] ~ low_scale * low[d] + step_scale * step[d] * code
  with code 0 to 3. low is rounded down and step up, so low and low + 3 * step enclose every key. Codes of a block
  of 16 dimensions are 64 bytes: byte 4 t + j (token t, j 0 to 3) holds at bits 2 g, 2 g + 1 that of dimension
  16 b + 4 g + j, so that one load, shifts and a mask give 16 tokens x 4 dimensions.
- node of 8 leaves, per kv head 3 D + 8 bytes: float32 scale, float32 mean_scale, int8 min[D] (rounded down), int8
  max[D] (rounded up), int8 mean[D].

Knows pools and rows. Does not know columns, queries or where rows are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekv_kernels import dispatch
from edgekv_kernels.reference import abstracts as reference

if TYPE_CHECKING:
    from edgekv_kernels.dispatch import Form

NODE_LEAVES = 8
MAX_DIM = 256  # the native forms take head dimensions that are multiples of 16 up to here
_BLOCK = 16


def key_bytes(num_kv_heads: int, dim: int) -> int:
    """Bytes of the low-bit keys of one leaf in one layer."""
    return num_kv_heads * (6 * dim + 8)


def node_bytes(num_kv_heads: int, dim: int) -> int:
    """Bytes of one node in one layer."""
    return num_kv_heads * (3 * dim + 8)


def pack_keys(pool: torch.Tensor, slots: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Low-bit keys of whole leaves: uint8 [n, Hkv * (6 D + 8)].

    pool: bfloat16 [num_slots, 2, Hkv, 16, D] contiguous, finite; slots: int32 [n] on its device. D is a
    multiple of 16.
    """
    _, _, num_kv_heads, _, dim = pool.shape
    out = _rows(pool, len(slots), key_bytes(num_kv_heads, dim), out)
    form = _form(pool)
    if len(slots) == 0:
        return out
    if form == "native":
        assert slots.dtype is torch.int32, slots.dtype
        assert slots.is_contiguous()
        dispatch.native.pack_keys(
            pool.data_ptr(), slots.data_ptr(), out.data_ptr(), len(slots), num_kv_heads, dim
        )
    elif form == "triton":
        dispatch.triton_form("abstracts").pack_keys(pool, slots, out)
    else:
        reference.pack_keys(pool, slots, out)
    return out


def pack_nodes(pool: torch.Tensor, slots: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Minimum, maximum and mean of every 8 leaves: uint8 [n, Hkv * (3 D + 8)].

    pool as for `pack_keys`; slots: int32 [8 n], the leaves of a node one after the other.
    """
    _, _, num_kv_heads, _, dim = pool.shape
    num_nodes, rest = divmod(len(slots), NODE_LEAVES)
    assert rest == 0, slots.shape
    out = _rows(pool, num_nodes, node_bytes(num_kv_heads, dim), out)
    if num_nodes == 0:
        return out
    if _form(pool) == "native":
        assert slots.dtype is torch.int32, slots.dtype
        assert slots.is_contiguous()
        dispatch.native.pack_nodes(
            pool.data_ptr(), slots.data_ptr(), out.data_ptr(), num_nodes, num_kv_heads, dim
        )
    else:  # nodes are made once in 128 tokens: on CUDA the plain form will do
        reference.pack_nodes(pool, slots, out)
    return out


def nodes_of_keys(keys: torch.Tensor, num_kv_heads: int, dim: int) -> torch.Tensor:
    """Nodes of whole groups of 8 leaves from their low-bit keys: uint8 [n, Hkv * (3 D + 8)].

    For leaves that are no longer in a pool: a little wider than `pack_nodes`, the bounds hold all the same.
    keys: uint8 [8 n, Hkv * (6 D + 8)]. Plain in every form: it is done once in 128 tokens.
    """
    assert keys.shape[0] % NODE_LEAVES == 0, keys.shape
    return reference.nodes_of_keys(keys, num_kv_heads, dim)


def nodes_of_nodes(nodes: torch.Tensor, dim: int) -> torch.Tensor:
    """The next level: a row for every 8 nodes, uint8 [n, Hkv * (3 D + 8)] of nodes uint8 [8 n, the same]."""
    assert nodes.shape[0] % NODE_LEAVES == 0, nodes.shape
    return reference.nodes_of_nodes(nodes, nodes.shape[1] // (3 * dim + 8), dim)


def _rows(pool: torch.Tensor, num_rows: int, width: int, out: torch.Tensor | None) -> torch.Tensor:
    """Checked or new rows."""
    assert pool.dtype is torch.bfloat16, pool.dtype
    assert pool.is_contiguous()
    assert pool.shape[4] % _BLOCK == 0, pool.shape
    if out is None:
        return torch.empty((num_rows, width), dtype=torch.uint8, device=pool.device)
    assert out.dtype is torch.uint8, out.dtype
    assert out.shape == (num_rows, width), (out.shape, num_rows, width)
    assert out.is_contiguous()
    return out


def _form(pool: torch.Tensor) -> Form:
    """The chosen form; native gives way to the reference for head dimensions it was not written for."""
    form = dispatch.form_of(pool)
    return "reference" if form == "native" and pool.shape[4] > MAX_DIM else form
