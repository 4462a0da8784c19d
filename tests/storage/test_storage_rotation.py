"""The key chain beside others: a master key replaced meanwhile, and parameters that somebody planted."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from storage_fixtures import OTHER, SEQUENCE

from edgekv_storage import DataDir, KeyChain, KeysDamaged, KeyUnavailable


@pytest.fixture
def directory(data_dir):
    with DataDir.open(data_dir) as directory:
        yield directory


def test_a_reader_beside_a_rotation_is_told_to_start_again(directory, data_dir):
    """Guards a false alarm: after `key rotate` elsewhere a new conversation was called damaged."""
    chain = KeyChain.open(directory, protection="file")
    secret = chain.need(SEQUENCE).secret
    reader = KeyChain.open(DataDir.open_read_only(data_dir))
    assert reader.find(SEQUENCE).secret == secret
    chain.rotate()
    chain.need(OTHER)
    assert reader.find(SEQUENCE).secret == secret
    with pytest.raises(KeyUnavailable, match="was replaced meanwhile"):
        reader.find(OTHER)
    assert reader.notices == []


def test_deeply_nested_parameters_are_one_clear_error(directory, data_dir):
    """Guards a planted keys.db: RecursionError out of every command."""
    KeyChain.open(directory, protection="file")
    with closing(sqlite3.connect(data_dir / "keys.db")) as db, db:
        db.execute("UPDATE master SET parameters = ?", ("[" * 60_000,))
    with pytest.raises(KeysDamaged, match="how its master key is protected"):
        KeyChain.open(directory)
