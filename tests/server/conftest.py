"""Clients of the server's application."""

from contextlib import ExitStack

import pytest
from fakes import FakeFactory
from server_client import open_test_client


@pytest.fixture
def open_client():
    """Opens clients over fake engines; closes their Runtimes at the end."""
    with ExitStack() as stack:

        def open_one(factory=None, data_dir=None, **options):
            return stack.enter_context(open_test_client(factory or FakeFactory(), data_dir, **options))

        yield open_one
