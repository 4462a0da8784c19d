"""The parts that decide what a figure means."""

import mmap
import time

import numpy as np
import pytest
import torch
from patience import PATIENCE_S

from edgekv.bench.alternate import alternate
from edgekv.bench.fidelity import Distance
from edgekv.bench.machine import disk_read_rate, memory_read_rate
from edgekv.bench.memory import MemoryPeak, anonymous_bytes
from edgekv.bench.tiers import compare
from edgekv.bench.writes import long_turns, turn_lengths


def test_programs_take_turns():
    """All of ours first, then all of theirs: a slow minute of the machine hits only one of them."""
    calls = []

    def ours():
        calls.append("ours")
        return 1.0

    def peer():
        calls.append("peer")
        return 2.0

    assert alternate(2, ours, peer) == ([1.0, 1.0], [2.0, 2.0])
    assert calls == ["ours", "peer", "ours", "peer"]
    assert alternate(2, ours, None)[1] == []


def test_a_difference_is_excused_only_where_the_reference_nearly_ties():
    """Excusing by the tested logits would let a wrong answer excuse itself."""
    want = np.array([[1.0, 0.99, 0.0], [1.0, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)
    got = np.array([[1.0, 1.01, 0.0], [1.0, 1.01, 0.0], [1.0, 0.0, 0.0]], np.float32)
    found = compare(want, got)
    assert (found.steps, found.equal, found.excused) == (3, 1, 1)
    assert found.max_difference == pytest.approx(0.51)


def test_distance_is_kl_from_the_truth_and_top1_over_all_blocks():
    """A mean of block means weighs the short last block like a long one."""
    truth = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    other = torch.tensor([[0.0, 2.0], [0.0, 2.0], [1.0, 0.0]])
    found = Distance()
    found.add(truth[:1], other[:1])
    found.add(truth[1:], other[1:])
    p = torch.softmax(truth[0].double(), -1)
    expected = float((p * (p / p.flip(0)).log()).sum()) / 3
    assert found.mean_kl == pytest.approx(expected)
    assert found.top1 == pytest.approx(2 / 3)


def test_the_memory_peak_sees_what_was_freed_again():
    """Only the end was looked at: the peak inside was missed."""
    before = anonymous_bytes()
    with MemoryPeak() as peak, mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as arena:
        arena.write(b"x" * (64 << 20))
        during = anonymous_bytes()
        deadline = time.monotonic() + PATIENCE_S
        while peak.bytes < during and time.monotonic() < deadline:  # the sampler's thread has to get its turn
            time.sleep(0.01)
    assert during >= before + (32 << 20)  # other threads may free some meanwhile
    assert peak.bytes >= before + (32 << 20)


def test_turns_are_at_least_64_tokens_and_end_inside_leaves():
    """Turns of whole leaves only would never leave an unfinished one to be written twice."""
    lengths = turn_lengths(50)
    assert (min(lengths), max(lengths)) == (64, 100)
    assert sum(length % 16 != 0 for length in lengths) > 40


def test_a_long_conversation_has_short_and_long_turns():
    """Equal turns would hide what a short one costs: a page of tables for a single leaf."""
    lengths = long_turns(100_000)
    assert sum(lengths) == 100_000
    assert (min(lengths[:-1]), max(lengths)) >= (20, 590)
    assert max(lengths) <= 600
    assert min(lengths[:-1]) < 40


def test_limits_of_the_machine_are_measured_and_leave_no_file(tmp_path):
    """A disk without direct reads or room gives None, not an error."""
    assert memory_read_rate() > 1e6
    rate = disk_read_rate(tmp_path / "new")
    assert rate is None or rate > 1e5
    assert list((tmp_path / "new").iterdir()) == []
    assert disk_read_rate(tmp_path / "file" if (tmp_path / "file").write_text("x") else tmp_path) is None
