"""Runtimes over a fake engine."""

import pytest
from fakes import FakeFactory

from edgekv import Runtime


@pytest.fixture
def open_runtime(data_dir):
    """Opens Runtimes with a fake engine over one data directory; closes them at the end."""
    opened = []

    def open_one(factory=None, **options):
        runtime = Runtime(engine_factory=factory or FakeFactory(), data_dir=data_dir, **options)
        opened.append(runtime)
        return runtime

    yield open_one
    for runtime in opened:
        runtime.close()
