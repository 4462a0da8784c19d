"""The bundled model on one thread: several wait for each other wherever other programs run too."""

import pytest


@pytest.fixture(autouse=True)
def one_thread(isolated_options, monkeypatch):
    """Unless a test says otherwise."""
    monkeypatch.setenv("EDGEKV_THREADS", "1")
