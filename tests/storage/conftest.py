"""Fixtures of the storage tests; what they are made of is in storage_fixtures.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where a store will be made."""
    return tmp_path / "data"
