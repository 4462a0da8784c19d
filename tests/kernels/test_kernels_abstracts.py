"""Low-bit keys and nodes: bounds that enclose, codes that decode, bytes where the layout says."""

import pytest
import torch

from edgekv_kernels import key_bytes, node_bytes, pack_keys, pack_nodes
from edgekv_kernels.reference.abstracts import decode_keys, decode_nodes, unpack_keys


def keys_pool(num_slots, num_kv_heads, dim, seed):
    """Keys with offsets and widths that differ by dimension, as real ones; values are NaN: never read."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_slots, num_kv_heads, 16, dim)
    width = torch.rand(num_kv_heads, 1, dim, generator=generator) * 3
    offset = torch.randn(num_kv_heads, 1, dim, generator=generator) * 2
    keys = torch.randn(shape, generator=generator) * width + offset
    return torch.stack((keys, torch.full(shape, torch.nan)), dim=1).bfloat16(), generator


@pytest.mark.parametrize(("num_kv_heads", "dim"), [(3, 64), (1, 128), (2, 80), (1, 16)])
def test_low_bit_keys_enclose_and_decode(form, num_kv_heads, dim):
    """Guards the bounds that exact selection relies on, and the nearest code after both ends are rounded."""
    pool, generator = keys_pool(9, num_kv_heads, dim, 1)
    slots = torch.randperm(9, generator=generator)[:5].int()
    rows = pack_keys(pool, slots)
    assert rows.shape == (5, key_bytes(num_kv_heads, dim))
    keys = pool[slots.long(), 0].double()
    low, step, _ = (x.double() for x in unpack_keys(rows, num_kv_heads, dim))
    assert bool((low[:, :, None] <= keys).all())
    assert bool((low[:, :, None] + 3 * step[:, :, None] >= keys).all())
    error = (decode_keys(rows, num_kv_heads, dim).double() - keys).abs() / step[:, :, None]
    assert float(error.max()) < 0.501  # of a step: the nearest code
    # rounding outwards costs at most one quantum at each end
    quantum = low.abs().amax(-1, keepdim=True) / 126 + step.amax(-1, keepdim=True) / 80
    assert bool((keys.amin(2) - low <= quantum).all())
    assert bool((low + 3 * step - keys.amax(2) <= 3 * quantum).all())


def test_layout_of_low_bit_keys(form):
    """The bytes on disk: token t, dimension d must be where the format says, whoever packed them."""
    pool = torch.zeros(2, 2, 2, 16, 32, dtype=torch.bfloat16)
    pool[1, 0, 1, :] = 1.0  # head 1: every key 1, except
    pool[1, 0, 1, 5, 22] = 4.0  # token 5, dimension 22 = 16 * 1 + 4 * 1 + 2
    row = pack_keys(pool, torch.tensor([1], dtype=torch.int32))[0]
    head = row.view(2, 6 * 32 + 8)[1]
    low_scale, step_scale = head[:8].clone().view(torch.float32).tolist()
    low, step = head[8:40].clone().view(torch.int8), head[40:72]
    assert low_scale == pytest.approx(1 / 127)
    assert low.tolist() == [126] * 32
    assert int(step[22]) * step_scale * 3 + 126 / 127 == pytest.approx(4.0, rel=0.01)
    codes = head[72:].view(2, 16, 4)
    assert int(codes[1, 5, 2]) >> 2 & 3 == 3
    assert int(codes[1, 4, 2]) >> 2 & 3 == 0


def test_keys_of_nothing_but_zeros(form):
    """A division by a scale of zero would fill the row with codes of NaN."""
    pool = torch.zeros(1, 2, 1, 16, 16, dtype=torch.bfloat16)
    rows = pack_keys(pool, torch.zeros(1, dtype=torch.int32))
    assert float(decode_keys(rows, 1, 16).abs().max()) < 1e-25


@pytest.mark.parametrize(("num_kv_heads", "dim"), [(3, 64), (2, 128), (1, 80)])
def test_nodes_enclose_their_leaves(form, num_kv_heads, dim):
    """Guards skipping a node that holds a winner; the mean is of all 128 tokens of this node's own slots."""
    pool, generator = keys_pool(20, num_kv_heads, dim, 2)
    slots = torch.randperm(20, generator=generator)[:16].int()
    rows = pack_nodes(pool, slots, torch.empty(2, node_bytes(num_kv_heads, dim), dtype=torch.uint8))
    keys = pool[slots.long(), 0].double().unflatten(0, (2, 8)).transpose(1, 2).flatten(2, 3)
    low, high, mean = (x.double() for x in decode_nodes(rows, num_kv_heads, dim))
    assert bool((low <= keys.amin(2)).all())
    assert bool((high >= keys.amax(2)).all())
    quantum = keys.abs().amax((2, 3)) / 120
    assert bool(((keys.amin(2) - low).amax(-1) <= quantum).all())
    assert bool(((high - keys.amax(2)).amax(-1) <= quantum).all())
    assert bool(((mean - keys.mean(2)).abs().amax(-1) <= quantum).all())


def test_no_leaves(form):
    """An empty list of slots is an empty index."""
    pool, _ = keys_pool(1, 1, 16, 3)
    slots = torch.empty(0, dtype=torch.int32)
    assert pack_keys(pool, slots).shape == (0, 104)
    assert pack_nodes(pool, slots).shape == (0, 56)
