"""The program `edgekv` with a fake engine, in this process and as a real one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import sys
from pathlib import Path
import edgekv.runtime, edgekv.cli.commands as commands
from fakes import FakeFactory
from edgekv_tui import plain
factory = FakeFactory(**{options})
edgekv.runtime._load_engine_factory = lambda: factory
edgekv.runtime._model_path = lambda config: Path("fake")
class EntryPoint:
    load = staticmethod(lambda: plain.run)
commands.entry_points = lambda **kind: [EntryPoint]
from edgekv.cli import main
main()
"""


@pytest.fixture
def edgekv(data_dir):
    """Runs `edgekv ARGS` as its own process over the test's data directory; `start=True` does not wait."""
    root = Path(__file__).parents[2]
    folders = [root, root / "kernels", root / "storage", root / "tui", root / "tests"]
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "EDGEKV_DATA_DIR": str(data_dir),
        "PYTHONUNBUFFERED": "1",
    }
    started = []

    def call(*args, stdin="", start=False, terminal=None, env=None, **engine_options):
        command = [sys.executable, "-c", DRIVER.replace("{options}", repr(engine_options)), *args]
        if start:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), terminal or subprocess.PIPE)
            own = {"start_new_session": True} if terminal else {}
            process = subprocess.Popen(command, env=environ | (env or {}), text=True, **pipes, **own)
            started.append(process)
            return process
        return subprocess.run(
            command,
            input=stdin,
            env=environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    yield call
    for process in started:
        process.kill()
        process.communicate()
