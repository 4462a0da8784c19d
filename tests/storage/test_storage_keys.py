"""The key chain: what it depends on, and that it is cheap."""

from __future__ import annotations

import numpy as np
import pytest

from edgekv_storage import leaf_keys

MODEL = b"m" * 32


def test_an_edit_keeps_every_full_leaf_before_it():
    """Guards reuse after an edit at token n: exactly n // 16 leaves keep their keys, none behind them."""
    ids = np.arange(16 * 12 + 9, dtype=np.int32)
    keys = leaf_keys(MODEL, b"exact", ids)
    assert len(keys) == 12
    for n in range(len(ids)):
        edited = ids.copy()
        edited[n] += 1
        found = leaf_keys(MODEL, b"exact", edited)
        same = [a == b for a, b in zip(keys, found, strict=True)]
        assert same == [leaf < n // 16 for leaf in range(12)]


def test_keys_continue_from_a_parent():
    """Guards incremental hashing: a long sequence hashed at once or turn by turn has the same keys."""
    ids = np.arange(16 * 9, dtype=np.int32)
    keys = leaf_keys(MODEL, b"exact", ids)
    assert keys == leaf_keys(MODEL, b"exact", ids[:64]) + leaf_keys(MODEL, b"exact", ids[64:], keys[3])
    assert leaf_keys(MODEL, b"exact", ids[:15]) == []


def test_model_and_namespace_change_every_key():
    """Guards against serving KV of another model or another attention mode."""
    ids = np.arange(32, dtype=np.int64)
    variants = [(MODEL, b"exact"), (MODEL, b"selected"), (b"n" * 32, b"exact"), (MODEL, b"")]
    keys = {key for model, namespace in variants for key in leaf_keys(model, namespace, ids)}
    assert len(keys) == 8
    with pytest.raises(ValueError):
        leaf_keys(MODEL, b"exact", ids, b"short")
