"""Virtual positions: where far columns seem to lie."""

from types import SimpleNamespace

import pytest
import torch

from edgekv.engine.positions import VirtualLayout

ROPE = SimpleNamespace(
    style="split",
    turn=lambda moved: (moved[:, None].double(), torch.zeros(len(moved), 1, dtype=torch.double)),
)


def distances(trained, end):
    """From a pass that ends at `end` to the first token of each column, and by how much each is moved."""
    turns = VirtualLayout(ROPE, trained).turns(end // 16, end)
    moved = turns.rows[turns.of, 0].long()[: end // 16]
    return end - (torch.arange(end // 16) * 16 - moved), moved


@pytest.mark.parametrize("trained", [512, 2048, 8192])
@pytest.mark.parametrize("times", [1.2, 8, 40])
def test_every_distance_is_a_trained_one(trained, times):
    """Guards the quality beyond the window: a distance that was never trained, or a column that seems to come."""
    end = int(trained * times) // 16 * 16
    seen, moved = distances(trained, end)
    assert int(seen.min()) > 0
    assert int(seen.max()) <= trained
    near = moved == 0
    assert torch.equal(seen[near], (end - torch.arange(end // 16) * 16)[near])
    assert near[-trained // 32 :].all(), "the latest keep their distance"


def test_what_was_said_in_a_row_stays_so():
    """A number that went on in the next leaf was lost while all far columns seemed to lie in one place."""
    seen, moved = distances(8192, 65_536)
    far = moved.nonzero().flatten()[1:]  # without the sink
    rows = far[:-1][far[1:] == far[:-1] + 1]
    follows = seen[rows] - seen[rows + 1]
    assert (follows == 16).float().mean() > 0.99
    assert len(VirtualLayout(ROPE, 8192).turns(65_536 // 16, 65_536).rows) < 34, "one row serves a whole span"
    assert int(seen[0]) < 8192 // 2, "a passkey in the sink was missed behind all others"


def test_a_layout_stays_for_a_while():
    """Guards the speed of decoding and that a turn sees one layout: the table is made anew every 512 tokens."""
    layout = VirtualLayout(ROPE, 8192)
    assert layout.turns(512, 8192) is None
    first = layout.turns(600, 9728 - 200)
    assert layout.turns(600, 9728) is first
    assert layout.turns(609, 9729) is not first
