"""Which reader is chosen: not at the cost of a start, not on planted figures, not silently against the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S, wait_until
from storage_fixtures import TINY, Model, open_store

from edgekv_storage import DataDir, IoUnusable
from edgekv_storage.io import choice, trial
from edgekv_storage.io.choice import Decider, choose, judge, recall, remember, require
from edgekv_storage.io.ring import Ring, RingUnusable
from edgekv_storage.io.trial import Trial, TrialStopped, try_drive

GOOD = Trial(works=True, uring=2e9, pread=1e9)
STORAGE = Path(choice.__file__).parents[2]
WITHOUT_IO_URING = """
import ctypes, errno, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
ERRNO, ALLOW = 0x00050000 | errno.EPERM, 0x7FFF0000
program = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0),          # load the system call's number
    (0x35, 0, 2, 425),        # below io_uring_setup: allow
    (0x25, 1, 0, 427),        # above io_uring_register: allow
    (0x06, 0, 0, ERRNO),
    (0x06, 0, 0, ALLOW),
])
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
if libc.prctl(22, 2, ctypes.byref(Filter(5, program)), 0, 0):
    sys.exit(77)
"""


@pytest.fixture(autouse=True)
def _nothing_proven():
    choice._proven.clear()
    yield
    choice._proven.clear()


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def _has_ring() -> bool:
    try:
        Ring(1).close()
    except RingUnusable:
        return False
    return True


@pytest.fixture(autouse=True)
def trials_may_take_long(monkeypatch):
    """What a trial finds is looked at here also while the machine is busy."""
    monkeypatch.setattr(trial, "_WORKS_SECONDS", PATIENCE_S)
    monkeypatch.setattr(trial, "_RATES_SECONDS", PATIENCE_S)


def test_a_trial_on_this_drive_speaks_for_itself(folder):
    """Guards the probe as a whole: the child starts, reads what pread reads, measures, leaves nothing behind."""
    for _ in range(10):  # on a machine with a lot else to do
        began = time.monotonic()
        found = try_drive(folder)
        if (took := time.monotonic() - began) < 5:
            break
    assert took < 5
    assert found.works == _has_ring()
    assert found.pread > 0
    assert (found.uring > 0) == found.works
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("tried", "backend"),
    [
        (GOOD, "uring"),
        (Trial(works=True, uring=1e9, pread=1.1e9), "uring"),
        (Trial(works=True, uring=1e9, pread=1.3e9), "pread"),
        (Trial(works=False, reason="the system refuses it"), "pread"),
    ],
)
def test_the_figures_decide(tried, backend):
    """Guards the rule: threads must be clearly faster, since they cost more of the processor."""
    assert judge(tried).backend == backend


def test_what_was_found_is_remembered_privately(folder):
    """Guards the start: the choice is one small file, 0600, and reading it is all that opening does."""
    assert choose("auto", folder).backend == "pread"
    remember(folder, GOOD)
    remember(folder, GOOD)
    assert recall(folder) == GOOD
    assert choose("auto", folder).backend == "uring"
    assert [p.name for p in folder.iterdir()] == ["io.json"]
    assert (folder / "io.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("field", ["kernel", "package", "drive"])
def test_other_circumstances_are_tried_again(folder, field):
    """Guards against yesterday's answer: a new kernel may refuse what the old one allowed."""
    remember(folder, GOOD)
    stored = json.loads((folder / "io.json").read_text())
    (folder / "io.json").write_text(json.dumps(stored | {field: "another"}))
    assert recall(folder) is None


@pytest.mark.parametrize(
    "change",
    [
        {"works": "yes"},
        {"works": 1},
        {"reason": "\x1b[2J"},
        {"reason": "x" * 300},
        {"reason": None},
        {"uring": -1.0},
        {"uring": float("nan")},
        {"uring": float("inf")},
        {"pread": True},
        {"pread": "fast"},
        {"more": 1},
    ],
)
def test_planted_figures_are_ignored(folder, change):
    """Guards the terminal and the choice: the file lies in a directory that others may have written to."""
    remember(folder, GOOD)
    stored = json.loads((folder / "io.json").read_text())
    (folder / "io.json").write_text(json.dumps(stored | change))
    assert recall(folder) is None


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"[1]", b"null", b"[" * 4000, b"{" + b" " * 10_000 + b"}"]
)
def test_damaged_files_are_ignored(folder, data):
    """Guards the start against any content."""
    (folder / "io.json").write_bytes(data)
    assert recall(folder) is None


def test_planted_links_and_pipes_are_ignored(folder, tmp_path):
    """Guards against reading or overwriting what a link leads to, and against waiting for a pipe."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (folder / "io.json").symlink_to(elsewhere)
    assert recall(folder) is None
    remember(folder, GOOD)
    assert elsewhere.read_text() == "mine"
    assert recall(folder) == GOOD
    (folder / "io.json").unlink()
    os.mkfifo(folder / "io.json")
    assert recall(folder) is None


def _probe_that(monkeypatch, tmp_path, body: str) -> None:
    program = tmp_path / "other_probe.py"
    program.write_text(body)
    monkeypatch.setattr(trial, "_PROBE", program)


def test_a_child_that_crashes_is_an_answer(folder, monkeypatch, tmp_path):
    """Guards this process: the binding may crash where the kernel is odd."""
    _probe_that(monkeypatch, tmp_path, "import os; os.abort()")
    found = try_drive(folder)
    assert not found.works
    assert "ended with code -6" in found.reason
    with pytest.raises(IoUnusable, match="ended with code -6; choose --io auto or --io pread"):
        require("uring", folder)


def test_a_child_that_hangs_is_left_after_its_time(folder, monkeypatch, tmp_path):
    """Guards the user's patience: no answer in time is told, and not remembered as one."""
    _probe_that(monkeypatch, tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(trial, "_WORKS_SECONDS", 0.2)
    with pytest.raises(TimeoutError):
        try_drive(folder)
    with pytest.raises(IoUnusable, match="took longer"):
        require("uring", folder)
    Decider(folder, delay_seconds=0)._thread.join(PATIENCE_S)
    assert not (folder / "io.json").exists()


def test_a_store_decides_while_it_is_open_and_not_before(data_dir, monkeypatch):
    """Guards the start-up path: first pread at once, a trial later, the next start knows."""
    monkeypatch.setattr(choice, "_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(Decider.__init__, "__kwdefaults__", {"delay_seconds": 0.05})
    with open_store(data_dir, io="auto") as store:
        assert store.io_name.startswith("pread")
        wait_until((data_dir / "io.json").exists, "a decision")
    expected = {"uring": "io_uring", "pread": "pread"}[choose("auto", data_dir).backend]
    with open_store(data_dir, io="auto") as store:
        assert store.io_name.startswith(expected)
        assert store._decider is None


def test_closing_does_not_wait_for_a_trial(data_dir, folder, monkeypatch):
    """Guards quick closing: a store that is open for a moment neither tries nor waits."""
    monkeypatch.setattr(Decider.__init__, "__kwdefaults__", {"delay_seconds": 10 * PATIENCE_S})
    began = time.monotonic()
    open_store(data_dir, io="auto").close()
    assert time.monotonic() - began < PATIENCE_S
    assert not (data_dir / "io.json").exists()
    decider = Decider(folder, delay_seconds=0)
    decider.close()
    assert not (folder / "io.json").exists() or recall(folder) is not None


def test_a_stopped_trial_says_so(folder):
    """Guards against remembering half a trial."""
    import threading

    stop = threading.Event()
    stop.set()
    with pytest.raises(TrialStopped):
        try_drive(folder, stop=stop)


def _in_a_process_without_io_uring(body: str) -> str:
    paths = [str(STORAGE), str(Path(__file__).parent)]
    code = WITHOUT_IO_URING + f"sys.path[:0] = {paths!r}\n" + body
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 77:
        pytest.skip("no system call filters here")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_where_io_uring_is_refused_threads_read_and_say_so(data_dir):
    """Guards containers: their filters refuse io_uring, and the same leaves are read by threads, with one line."""
    DataDir.open(data_dir).close()
    remember(data_dir, GOOD)  # as found outside of the container
    printed = _in_a_process_without_io_uring(
        f"""
from pathlib import Path
from storage_fixtures import TINY, Model, open_store
with open_store(Path({str(data_dir)!r}), io="auto") as store:
    model = Model(TINY)
    places = model.append(store, 4)
    print(model.read(store, places), store.io_name, store.take_notices())
"""
    )
    assert printed.startswith("(12, 0) pread (16 threads")
    assert "refuses io_uring (Operation not permitted)" in printed


def test_where_io_uring_is_refused_the_probe_says_so_and_threads_are_chosen(folder):
    """Guards the whole way from the system's refusal to `doctor`: probe, what is remembered, choice, its reason."""
    printed = _in_a_process_without_io_uring(
        f"""
from pathlib import Path
from edgekv_storage.io.choice import choose, remember
from edgekv_storage.io.trial import try_drive
folder = Path({str(folder)!r})
found = try_drive(folder)
assert found.pread > 0 and found.uring == 0, found
remember(folder, found)
print(choose("auto", folder).backend, choose("auto", folder).why)
"""
    )
    assert printed == (
        "pread auto: io_uring cannot be used here: the system refuses it (Operation not permitted)\n"
    )


def test_where_io_uring_is_refused_forcing_it_is_one_clear_error(data_dir):
    """Guards against a silent fallback where the user was explicit."""
    printed = _in_a_process_without_io_uring(
        f"""
from pathlib import Path
from storage_fixtures import open_store
from edgekv_storage import IoUnusable
try:
    open_store(Path({str(data_dir)!r}), io="uring")
except IoUnusable as error:
    print(error)
"""
    )
    assert printed == (
        "io_uring cannot be used here: the system refuses it (Operation not permitted); "
        "choose --io auto or --io pread\n"
    )


def test_forcing_works_where_io_uring_does(data_dir):
    """Guards the option itself."""
    if not _has_ring():
        pytest.skip("no io_uring here")
    with open_store(data_dir, io="uring", io_depth=8) as store:
        assert store.io_name == "io_uring (8 in flight, O_DIRECT)"
        model = Model(TINY)
        assert model.read(store, model.append(store, 5)) == (15, 0)
