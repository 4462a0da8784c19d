"""The program `edgekv` with a fake engine, in this process and as a real one."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import cli_child
import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "kernels", "storage", "tui", "tests", "tests/cli")
PYTHONPATH = os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)
LOADED_LATE = ("edgekv_storage", "edgekv.checkup", "pydantic", "keyring")  # the last two where they are
DRIVER = "import cli_child; cli_child.be_edgekv({options})"


@pytest.fixture(scope="session")
def forking():
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli_child", *LOADED_LATE])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        forkserver.ensure_running()
    return context


def run_forked(context, folder, args, stdin, environ, engine_options):
    """What `subprocess.run` returns, of the program in a fork."""
    folder.mkdir()
    (folder / "in").write_text(stdin)
    child = context.Process(target=cli_child.run, args=(args, str(folder), environ, engine_options))
    child.start()
    child.join(60)
    assert child.exitcode is not None, "it hangs"
    told = [(folder / name).read_text() for name in ("out", "err")]
    return subprocess.CompletedProcess(args, child.exitcode, *told)


@pytest.fixture
def edgekv(data_dir, forking, tmp_path_factory):
    """Runs `edgekv ARGS` as its own process over the test's data directory; `start=True` does not wait."""
    environ = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "EDGEKV_DATA_DIR": str(data_dir),
        "PYTHONUNBUFFERED": "1",
    }
    started, streams = [], tmp_path_factory.mktemp("streams")

    def call(*args, stdin="", start=False, terminal=None, stdout=None, env=None, **engine_options):
        if start:
            command = [sys.executable, "-c", DRIVER.replace("{options}", repr(engine_options)), *args]
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), terminal or subprocess.PIPE)
            pipes["stdout"] = stdout or pipes["stdout"]
            own = {"start_new_session": True} if terminal else {}
            process = subprocess.Popen(command, env=environ | (env or {}), text=True, **pipes, **own)
            started.append(process)
            return process
        folder = streams / str(len(list(streams.iterdir())))
        return run_forked(forking, folder, args, stdin, environ | (env or {}), engine_options)

    yield call
    for process in started:
        process.kill()
        process.communicate()
