"""Fixtures of the storage tests; what they are made of is in storage_fixtures.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from storage_fixtures import Encryption, FixedKeys, Reading

from edgekv_storage.io.ring import Ring, RingUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where a store will be made."""
    return tmp_path / "data"


@pytest.fixture(params=["plain", "encrypted"])
def encryption(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test without encryption and with it."""
    Encryption.keys = FixedKeys() if request.param == "encrypted" else None
    yield request.param
    Encryption.keys = None


@pytest.fixture(params=["pread", "uring", "buffered"])
def io(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with every reader."""
    if request.param == "uring":
        try:
            Ring(1).close()
        except RingUnusable as reason:
            pytest.skip(str(reason))
    Reading.io = request.param
    yield request.param
    Reading.io = "pread"
