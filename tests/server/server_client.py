"""A client of the server's application over a fake engine."""

import time
from contextlib import contextmanager

from starlette.testclient import TestClient

from edgekv import Runtime
from edgekv.server.app import Service

TOKEN = "a-token-of-some-length"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PLACE = "http://127.0.0.1:8377"


@contextmanager
def open_test_client(factory, data_dir, *, most_body_bytes=1 << 20, **options):
    """`client.runtime` is what is behind it."""
    with Runtime(engine_factory=factory, data_dir=data_dir, **options) as runtime:
        app = Service(runtime, most_body_bytes=most_body_bytes).app(token=TOKEN)
        client = TestClient(app, base_url=PLACE, headers=HEADERS, raise_server_exceptions=False)
        client.runtime = runtime
        yield client


def wait_until(condition, seconds=10):
    """Return as soon as `condition()` holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
