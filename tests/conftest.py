"""What every test gets: no options from outside, a data directory of its own."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def isolated_options(monkeypatch, tmp_path_factory):
    """No test may depend on, or touch, the configuration and conversations of whoever runs it."""
    for variable in list(os.environ):
        if variable.startswith("EDGEKV_"):
            monkeypatch.delenv(variable)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """An empty data directory."""
    return tmp_path / "data"
