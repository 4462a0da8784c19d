"""Virtual positions: where far columns seem to lie."""

from types import SimpleNamespace

import pytest
import torch

from edgekv.engine.positions import VirtualLayout

ROPE = SimpleNamespace(
    style="split",
    turn=lambda moved: (moved[:, None].double(), torch.zeros(len(moved), 1, dtype=torch.double)),
)


NONE = torch.empty(0, dtype=torch.int32)


def distances(trained, end):
    """From a pass that ends at `end` to the first token of each column, and by how much each is moved."""
    turns = VirtualLayout(ROPE, trained).turns(end, end, NONE)
    moved = turns.rows[turns.of, 0].long()[: end // 16]
    return end - (torch.arange(end // 16) * 16 - moved), moved


@pytest.mark.parametrize("trained", [128, 512, 1000, 2048, 4100, 8192])
@pytest.mark.parametrize("times", [1, 1.2, 8, 40])
@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("num_named", [0, 1, 16])
def test_every_distance_is_a_trained_one(trained, times, stays, num_named):
    """Guards the quality beyond the window, from a block's first query to the last token of an answer that sees the
    same layout: distances that were never trained, or columns that seem to come later. Windows of 2,048 tokens had
    such columns for most blocks.
    """
    layout = VirtualLayout(ROPE, trained)
    block = layout.block_tokens
    named = torch.arange(1, min(1 + num_named, int(trained * times) // 16), dtype=torch.int32)
    for start in range(int(trained * times), int(trained * times) + 40, 3):
        for count in {1, 2, 17, block // 2, block}:
            layout.renew()
            turns = layout.turns(start, start + count, named, stays=stays)
            if turns is None:
                continue
            answer = start + count
            while layout.turns(answer, answer + 1, named) is turns:
                answer += 1
            room = trained // 8 if stays else 0
            assert answer - start - count in range(room - 32, room + 16)
            columns = torch.arange(-(-start // 16)) * 16
            virtual = columns - turns.rows[turns.of, 0].long()[: len(columns)]
            is_moved = virtual != columns
            assert int((start - virtual)[is_moved].min()) > 15, "nor its last token"
            assert int((answer - 1 - virtual).max()) < trained
            assert not is_moved[columns > start - trained // 2].any(), "the latest keep their distance"


def test_what_was_said_in_a_row_stays_so():
    """A number that went on in the next leaf was lost while all far columns seemed to lie in one place."""
    seen, moved = distances(8192, 65_536)
    far = moved.nonzero().flatten()[1:]  # without the sink
    rows = far[:-1][far[1:] == far[:-1] + 1]
    follows = seen[rows] - seen[rows + 1]
    assert (follows == 16).float().mean() > 0.99
    assert len(VirtualLayout(ROPE, 8192).turns(65_535, 65_536, NONE).rows) < 34, "one row serves a whole span"
    assert int(seen[0]) < 8192 // 2, "a passkey in the sink was missed behind all others"


def test_a_block_needs_no_room_for_an_answer():
    """Guards a long text's perplexity: with room for an answer, 1,024 tokens less kept their distance."""
    turns = VirtualLayout(ROPE, 8192).turns(32_752, 32_768, NONE, stays=False)
    moved = turns.rows[turns.of, 0].long()
    assert int(moved.nonzero().max()) * 16 == 32_768 - 8192 + 16
    far = 32_768 - (torch.arange(1, 1000) * 16 - moved[1:1000])
    assert (int(far.min()), int(far.max())) == (2064, 4096)


def test_a_turn_sees_one_layout():
    """Guards kv-path's promise, the speed of decoding (a table is made once), and that an answer depends on its own
    prompt only, not on what was asked before.
    """
    layout = VirtualLayout(ROPE, 8192)
    assert layout.turns(8190, 8192, NONE) is None
    first = layout.turns(9600, 9601, NONE)
    assert layout.turns(9600 + 1024, 9601 + 1024, NONE) is first
    longer = layout.turns(9616 + 1024, 9616 + 1025, NONE)
    assert longer is not first
    layout.renew()
    again = layout.turns(9600, 9601, NONE)
    assert torch.equal(again.of, first.of)
    assert torch.equal(again.rows, first.rows)


def test_what_a_question_names_seems_to_be_said_shortly_before_it():
    """Guards a number that was read and not understood: with all others, 1,536 tokens away and more, it was lost.
    Near columns keep their distance, as kv-path promises.
    """
    named = torch.tensor([7, 8, 1500, 3900], dtype=torch.int32)
    turns = VirtualLayout(ROPE, 8192).turns(65_543, 65_563, named)
    virtual = named * 16 - turns.rows[turns.of, 0].long()[named.long()]
    assert virtual.tolist() == [65_536 - 512 - 48, 65_536 - 512 - 32, 65_536 - 512 - 16, 3900 * 16]
