"""How a prompt is cut into passes."""

from types import SimpleNamespace

import pytest

from edgekv.engine.runner import Runner


def passes(start, total, room=512, *, selects=True, most=None):
    """Sizes of the passes over the tokens from `start` to `total`, at most `most` beyond token 1,000."""
    selected = SimpleNamespace(most_tokens=lambda end: most if end > 1000 else None)
    runner = SimpleNamespace(
        selects=lambda total, count: selects and (count <= 64 or most is not None), selected=selected
    )
    found = []
    while start < total:
        found.append(Runner.block_size(runner, start, total, room - start % 16))
        start += found[-1]
    return found


@pytest.mark.parametrize(
    ("start", "total", "want"),
    [
        (0, 1, [1]),
        (1000, 1064, [64]),
        (1000, 1065, [32, 33]),  # not one token, which would be taken for a token of the answer
        (1000, 1128, [64, 64]),
        (0, 1024, [512, 448, 64]),
        (0, 1034, [512, 458, 64]),
        (0, 1090, [512, 512, 33, 33]),
    ],
)
def test_the_last_tokens_of_a_prompt_choose_for_themselves(start, total, want):
    """A passkey was lost where the question's few queries were drowned by those of the block they stood in."""
    got = passes(start, total)
    assert sum(got) == total - start
    assert got == want


def test_where_everything_is_read_nothing_is_cut():
    """Guards the speed of exact attention: a pass of 64 tokens more for nothing."""
    assert passes(0, 1034, selects=False) == [512, 512, 10]


def test_blocks_are_short_beyond_a_short_window():
    """Guards virtual distances: of a longer block the first query would see columns that seem to come later."""
    assert passes(512, 900, most=128) == [324, 64]
    assert passes(960, 1344, most=128) == [128, 128, 64, 64]
