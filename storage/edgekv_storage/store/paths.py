"""The token ids that the records of a sequence hold, put together along its chains; no KV is read.

Knows records, keys and parents. Ids come from tables that verified, and a path is believed only as far as its
keys can be computed again from its ids: so it is what was once appended, in that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekv_storage.segments.format import NO_PARENT
from edgekv_storage.store.transfer import LeafPlace

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgekv_storage.store.catalog import Known
    from edgekv_storage.store.parts import Parts

    KeysOf = Callable[[NDArray[np.int32]], list[bytes]]

MAX_PATH_TOKENS = 1 << 23
"""Of all paths together, 32 MiB: many branches of a long conversation repeat their common part."""


def stored_paths(parts: Parts, sequence_id: bytes, keys_of: KeysOf) -> list[NDArray[np.int32]]:
    """Token ids [T] from the sequence's start to each end of its chains, the one that was begun first first.

    Leaves whose KV is damaged count, as long as the tables of their record verify.
    """
    leaves: dict[bytes, tuple[bytes, NDArray[np.int32]]] = {}
    for known in _records(parts, sequence_id):
        assert known.tables is not None
        parent = known.tables.header.parent
        for key, ids in zip(known.tables.keys, known.tables.token_ids, strict=True):
            leaves[key] = (parent, ids)
            parent = key
    followed = {parent for parent, _ in leaves.values()}
    paths: list[NDArray[np.int32]] = []
    left = MAX_PATH_TOKENS
    for tip in (key for key in leaves if key not in followed):
        path = _path(leaves, tip, keys_of)
        if 0 < len(path) <= left:
            paths.append(path)
            left -= len(path)
    return paths


def _records(parts: Parts, sequence_id: bytes) -> list[Known]:
    """Records of the model in use whose tables could be read and verified, in the order they were written."""
    catalog = parts.catalog
    with catalog.lock:
        parts.indexing.load(sequence_id, parts.layout)
        known = {
            LeafPlace(segment.header.segment, number, 0): record
            for segment in catalog.segments_of(sequence_id)
            if segment.header.layout == parts.layout
            for number in range(segment.num_records)
            if (record := catalog.record(segment.header.segment, number)) is not None
        }
    parts.readers.load_tables(list(known))
    return [record for record in known.values() if record.tables is not None]


def _path(
    leaves: dict[bytes, tuple[bytes, NDArray[np.int32]]], tip: bytes, keys_of: KeysOf
) -> NDArray[np.int32]:
    """From the start to `tip`; empty where a leaf between is missing."""
    chain: list[bytes] = []
    at = tip
    while at != NO_PARENT:
        if at not in leaves or len(chain) > len(leaves):  # planted rows may go in circles
            return np.empty(0, np.int32)
        chain.append(at)
        at = leaves[at][0]
    chain.reverse()
    ids = np.concatenate([leaves[key][1] for key in chain])
    return ids if keys_of(ids) == chain else np.empty(0, np.int32)
