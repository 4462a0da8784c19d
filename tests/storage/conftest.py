"""Fixtures of the storage tests; what they are made of is in storage_fixtures.py."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from storage_fixtures import Encryption, FixedKeys, Reading

from edgekv_storage.io.ring import Ring, RingUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where a store will be made."""
    return tmp_path / "data"


@pytest.fixture
def copy() -> Iterator[Path]:
    """A data directory to be made again and again, in memory if there is such a place: hundreds are opened for what
    is in their files. On a drive nearly all of the time is that of making and removing files.
    """
    shared = Path("/dev/shm")
    is_usable = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 1 << 28
    folder = Path(tempfile.mkdtemp(prefix="edgekv-test-", dir=shared if is_usable else None))
    yield folder / "copy"
    shutil.rmtree(folder)


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
