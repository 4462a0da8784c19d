"""Clients of the server's application, each over its own data directory."""

from contextlib import ExitStack

import pytest
from fakes import FakeFactory
from server_client import open_test_client


@pytest.fixture
def open_client(tmp_path):
    """Opens clients over fake engines; closes their Runtimes at the end."""
    with ExitStack() as stack:
        opened = []

        def open_one(factory=None, **options):
            opened.append(None)
            path = tmp_path / f"data{len(opened)}"
            return stack.enter_context(open_test_client(factory or FakeFactory(), path, **options))

        yield open_one
