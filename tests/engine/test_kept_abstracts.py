"""Low-bit keys read from pieces, over a store whose pieces can be damaged."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgekv.tiers.kept_abstracts import KeptAbstracts
from edgekv_storage import Cut, LeafPlace

KEY_BYTES = 5
COLUMNS = 24  # three pieces of 8, each of the same record


class Pieces:
    """Every piece holds its number; of damaged ones noise arrives, as of one that is opened where it lies."""

    def __init__(self, damaged):
        self.damaged = damaged

    def section_cut(self, _place, _kind):
        return Cut(1, COLUMNS * KEY_BYTES, 8 * KEY_BYTES)

    def read_pieces(self, requests):
        faults = []
        for number, request in enumerate(requests):
            is_bad = request.first in self.damaged
            np.frombuffer(request.out, np.uint8)[:] = 255 if is_bad else request.first
            if is_bad:
                faults.append(SimpleNamespace(request=number))
        return SimpleNamespace(wait=lambda: None, result=faults)


@pytest.mark.parametrize("damaged", [(), (1,), (0, 2)])
def test_what_is_there_stays_beside_a_damaged_piece(damaged):
    """Guards keys that were made anew of their leaves: the piece was read again for its other columns, straight
    over them, and what did not verify stayed, counted as present."""
    keys = np.full((COLUMNS, KEY_BYTES), 77, np.uint8)
    absent = np.array([c for c in range(COLUMNS) if c not in (3, 9, 10, 23)])
    places = [LeafPlace(1, 0, leaf) for leaf in range(COLUMNS)]
    arrived = KeptAbstracts(Pieces(damaged), 1, KEY_BYTES, 7).read_keys(places, 0, absent, keys)
    for column in range(COLUMNS):
        piece = column // 8
        assert (column in arrived) == (piece not in damaged)
        if piece not in damaged:
            assert (keys[column] == piece).all()
        elif column not in absent:
            assert (keys[column] == 77).all()


def test_whole_pieces_are_read_where_they_belong(monkeypatch):
    """Guards the resume: no copy where all columns of a piece are asked for."""
    keys, outs = np.zeros((COLUMNS, KEY_BYTES), np.uint8), []
    store = Pieces(())
    monkeypatch.setattr(
        store, "read_pieces", lambda requests: outs.extend(requests) or Pieces.read_pieces(store, requests)
    )
    places = [LeafPlace(1, 0, leaf) for leaf in range(COLUMNS)]
    KeptAbstracts(store, 1, KEY_BYTES, 7).read_keys(places, 0, np.arange(8, COLUMNS), keys)
    assert [np.shares_memory(np.frombuffer(one.out, np.uint8), keys) for one in outs] == [True, True]
    assert keys[:, 0].tolist() == [0] * 8 + [1] * 8 + [2] * 8
