"""A client of the server's application over a fake engine."""

import threading
import time
from contextlib import contextmanager, nullcontext

import uvicorn
from anyio.from_thread import start_blocking_portal
from starlette.testclient import TestClient

from edgekv import Runtime
from edgekv.server.app import Service
from edgekv.server.run import listen_on_port

TOKEN = "a-token-of-some-length"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PLACE = "http://127.0.0.1:8377"


@contextmanager
def open_test_client(factory, data_dir=None, *, most_body_bytes=1 << 20, **options):
    """`client.runtime` is what is behind it. Without a data directory nothing is durable."""
    if data_dir is not None:
        options["data_dir"] = data_dir
    with Runtime(engine_factory=factory, durable=data_dir is not None, **options) as runtime:
        app = Service(runtime, most_body_bytes=most_body_bytes).app(token=TOKEN)
        client = TestClient(app, base_url=PLACE, headers=HEADERS, raise_server_exceptions=False)
        client.runtime = runtime
        # One loop for all requests, as a server has: else what one leaves in the background ends with it.
        with start_blocking_portal() as client.portal:
            yield client


@contextmanager
def live(factory, **options):
    """A server in a thread, and the address of its API."""
    with (
        Runtime(engine_factory=factory, durable=False, **options) as runtime,
        listen_on_port(0) as listening,
    ):
        app = Service(runtime, most_body_bytes=1 << 20).app(token=TOKEN)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
        server.capture_signals = nullcontext  # those are the test program's
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.002)
            yield runtime, f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
