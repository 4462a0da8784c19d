"""Moves between the tiers, told as lines."""

from edgekv import Move
from edgekv_tui.moves import times, when


def test_a_move_says_from_when_until_when():
    """Guards the time: of what took minutes the last moment alone would be wrong."""
    begin, end = when(Move(90.0, "demoted", 32, "device", "a", num_moves=2, seconds=90.0)).split("-")
    assert begin != end == when(Move(90.0, "demoted", 16, "device", "a"))
    assert times(Move(90.0, "demoted", 32, "device", num_moves=2)) == " in 2 moves"
    assert times(Move(90.0, "demoted", 32, "device")) == ""
