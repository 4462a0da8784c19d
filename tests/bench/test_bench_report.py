"""Rows and ratios."""

import msgspec
import pytest

from edgekv.bench.report import Labels, Report, ratio, spread

FIELDS = [
    "metric", "context", "ours", "peer", "ratio", "unit", "runs", "spread", "policy", "attention", "budget",
    "device", "backend", "size", "depth", "encrypted", "text",
]  # fmt: skip


def test_a_ratio_above_one_means_ours_is_better_in_either_direction():
    """A time divided the way of a rate once turned a loss into a win."""
    assert ratio(200.0, 100.0, "higher") == 2.0
    assert ratio(0.5, 2.0, "lower") == 4.0
    assert ratio(0.5, None, "lower") is None
    assert ratio(0.5, 0.0, "lower") is None


def test_a_measured_row_is_made_of_medians_and_our_spread():
    """A mean would let one run disturbed by another program decide."""
    row = Labels(context=512).measured("x_s", "s", [1.0, 9.0, 2.0], [8.0, 4.0, 1.0], better="lower")
    assert (row.ours, row.peer, row.ratio, row.runs, row.spread) == (2.0, 4.0, 2.0, 3, 4.0)


def test_spread_of_one_run_is_unknown():
    """Zero would claim that the figure repeats."""
    assert spread([3.0]) is None
    assert spread([2.0, 3.0, 4.0]) == pytest.approx(2 / 3)


def test_the_object_has_every_field_in_the_documented_order():
    """Scripts read these rows: a field that is unused is null, not absent."""
    row = Labels(context=16, text="novel").row("kl_nats", "nats", ours=0.25)
    made = Report("bench x", "1", {"cores": 2}, [row]).as_object()
    assert list(made) == ["command", "version", "machine", "rows"]
    assert list(made["rows"][0]) == FIELDS
    assert made["rows"][0]["peer"] is None
    assert msgspec.json.decode(msgspec.json.encode(made)) == made


def test_the_table_leaves_out_columns_that_no_row_uses():
    """Seventeen columns, most of them empty, do not fit a terminal."""
    rows = [Labels(context=16).row("a", "s", ours=1.5), Labels(context=32).row("bb", "s", ours=2)]
    head, first, second = Report("bench x", "1", {"cores": 2}, rows).as_table().splitlines()[2:]
    assert head.split() == ["metric", "context", "ours", "unit", "attention"]
    assert first.split() == ["a", "16", "1.500", "s", "exact"]
    assert second.split() == ["bb", "32", "2", "s", "exact"]
