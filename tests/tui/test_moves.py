"""Moves between the tiers, told as lines."""

from edgekv import Move
from edgekv_tui.moves import runs_of


def told(*moves):
    rows = [Move(float(at), kind, 16, why, name) for at, (kind, why, name) in enumerate(moves)]
    return [(run.kind, run.why, run.name, run.num_tokens, run.times) for run in runs_of(rows)]


def test_what_goes_on_is_one_line():
    """Guards the list against an answer under selection: a line for each 16 tokens pushed out all others."""
    assert told() == []
    assert told(*[("demoted", "device", "a")] * 3) == [("demoted", "device", "a", 48, " in 3 moves")]
    turns = [("demoted", "device", "a"), ("dropped", "host", "a")] * 4
    assert told(*turns) == [
        ("demoted", "device", "a", 64, " in 4 moves"),
        ("dropped", "host", "a", 64, " in 4 moves"),
    ]


def test_only_what_belongs_together_is_put_together():
    """Guards sums that would be of nothing: another conversation between, another reason, or no name known."""
    moves = [
        ("demoted", "device", "a"),
        ("demoted", "device", "b"),
        ("demoted", "device", "a"),
        ("demoted", "unloaded", "a"),
        ("demoted", "device", None),
        ("demoted", "device", None),
    ]
    assert told(*moves) == [(*move, 16, "") for move in moves]


def test_a_run_says_from_when_until_when():
    """Guards the time: of a run that took minutes the last moment alone would be wrong."""
    runs = runs_of([Move(at, "demoted", 16, "device", "a") for at in (0.0, 90.0)])
    begin, end = runs[0].when.split("-")
    assert (end, begin != end) == (runs[0].last, True)
