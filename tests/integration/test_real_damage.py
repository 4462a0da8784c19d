"""Damage on the drive under the bundled model: the same answer as without a cache, and the damage is told."""

from __future__ import annotations

import shutil

import pytest

from edgekv import Runtime
from edgekv.models.catalog import bundled_model

pytestmark = pytest.mark.skipif(bundled_model() is None, reason="the bundled model is not installed")
STORY = "The lighthouse keeper wrote down every ship that passed, its sails, its flag and its hour. "
QUESTION = "Count to five."  # at each token of the answer the best one leads by far: rounding decides nothing


def _ask(data_dir, text):
    """One answer of a Runtime that was just started."""
    with Runtime(data_dir=data_dir, temperature=0, max_tokens=16) as runtime:
        return runtime.conversation("a").send(text)


def test_a_flipped_bit_costs_leaves_and_not_the_answer(data_dir, tmp_path):
    """Guards the whole way from a seal to the answer: damaged KV is found, counted, computed again, told once."""
    _ask(data_dir, STORY * 20)
    without = shutil.copytree(data_dir, tmp_path / "without")
    (segment,) = without.glob("seg-*.kv")
    segment.unlink()
    expected = _ask(without, QUESTION)
    assert expected.usage.reused_tokens == 0

    (segment,) = data_dir.glob("seg-*.kv")
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 16]))
    got = _ask(data_dir, QUESTION)
    assert got.text == expected.text
    assert got.cache.damaged_leaves >= 1
    assert 0 < got.usage.reused_tokens < got.usage.prompt_tokens

    again = _ask(data_dir, "And on to ten.")
    assert again.cache.damaged_leaves == 0
    assert again.usage.reused_tokens > got.usage.reused_tokens
