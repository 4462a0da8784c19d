"""Sections whose content follows from the leaves of their record, so that any byte of them can be judged."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edgekv_storage import Pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv_storage import LeafPlace, Store

WHOLE, BY_LEAF = 1, 2
_UNIT = 24


def _unit(name: bytes, layer: int) -> bytes:
    return hashlib.blake2b(b"%d " % layer + name, digest_size=_UNIT).digest()


def sections_of(names: Sequence[bytes], num_layers: int) -> dict[int, bytes | Pieces]:
    """A section in one piece and one in several. `names`: of the record's leaves; no other leaf has them."""
    by_leaf = b"".join(_unit(name, layer) for layer in range(num_layers) for name in names)
    pieces = Pieces.of_leaves(by_leaf, num_layers, len(names), 3)
    return {WHOLE: _unit(names[0], -1) * len(names), BY_LEAF: pieces}


def judge_sections(
    store: Store, places: Sequence[LeafPlace], names: Sequence[bytes], num_layers: int
) -> tuple[int, int]:
    """(wrong, missing) sections of the records that hold `places`; those in one piece may go in a compaction."""
    wrong = missing = 0
    name_of = dict(zip(places, names, strict=True))
    for first, data in store.read_sections(places, BY_LEAF):
        if data is None:
            missing += 1
            continue
        num_leaves = len(data) // (_UNIT * num_layers)
        wrong += any(
            data[(layer * num_leaves + place.leaf) * _UNIT :][:_UNIT] != _unit(name, layer)
            for place, name in name_of.items()
            if place[:2] == first[:2]
            for layer in range(num_layers)
        )
    for first, data in store.read_sections(places, WHOLE):
        if data is not None and first.leaf == 0:
            wrong += data != _unit(name_of[first], -1) * (len(data) // _UNIT)
    return wrong, missing
