"""The real program with the real model in a real terminal: `edgekv chat` inside tmux, as a person uses it."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from edgekv.models.catalog import bundled_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bundled_model() is None, reason="the bundled model is not installed"),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
]
PATIENCE_S = 120


def front_ends(root, folder):
    """A folder for the module path that names the chat's front ends as an installed edgekv does."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    metadata = folder / "edgekv-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: edgekv\nVersion: 0\n")
    rows = [f"{name} = {target}" for name, target in project["entry-points"]["edgekv.frontends"].items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[edgekv.frontends]", *rows, ""]))
    return folder


@pytest.fixture
def terminal(data_dir, tmp_path):
    """Starts `edgekv chat` in a new tmux session of 80 by 24; what it returns types and looks."""
    root = Path(__file__).parents[2]
    folders = [
        front_ends(root, tmp_path / "metadata"),
        root,
        root / "kernels",
        root / "storage",
        root / "tui",
        os.environ.get("PYTHONPATH", ""),
    ]
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "EDGEKV_DATA_DIR": str(data_dir),
        "EDGEKV_ENCRYPTION": "off",  # so that words would be found in the files
    }
    socket, shell_id = tmp_path / "tmux", tmp_path / "pid"

    def tmux(*arguments):
        command = ["tmux", "-S", str(socket), "-f", os.devnull, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout

    class Terminal:
        def start(self):
            program = f"{sys.executable} -m edgekv chat --max-tokens 400; echo ended with $?; sleep 1000"
            program = f"echo $$ > {shell_id}; {program}"
            tmux("new-session", "-d", "-x", "80", "-y", "24", "-s", "chat", program)

        def presses(self, *keys):
            tmux("send-keys", "-t", "chat", *keys)

        def screen(self):
            return tmux("capture-pane", "-p", "-t", "chat")

        def sees(self, *texts):
            deadline = time.monotonic() + PATIENCE_S
            while not all(text in self.screen() for text in texts):
                assert time.monotonic() < deadline, f"waited for {texts}; there is:\n{self.screen()}"
                time.sleep(0.1)
            return self.screen()

        def end(self):
            self.presses("C-q")
            self.sees("ended with 0")
            tmux("kill-server")

        def closes_window(self):
            """As a person does in the middle of it; returns once the program has ended, too."""
            program = _children(int(shell_id.read_text()))[0]
            tmux("kill-server")
            deadline = time.monotonic() + PATIENCE_S
            while Path(f"/proc/{program}").exists():
                assert time.monotonic() < deadline, "the program outlives its window"
                time.sleep(0.1)

    yield Terminal()
    subprocess.run(["tmux", "-S", str(socket), "kill-server"], capture_output=True, check=False)


def _children(process_id):
    return [
        int(child) for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    ]


def test_chat_stop_quit_reopen_and_a_private_chat(terminal, data_dir):
    """Guards the whole of it: an answer, a stop, a restart that reuses nearly all, nothing of a private chat."""
    terminal.start()
    terminal.sees("Say something", "Nothing was said yet")
    terminal.presses("What is a lighthouse?", "Enter")
    terminal.sees("What is a lighthouse?", "exact;", "tokens at")
    terminal.presses("Tell a very long story about its keeper, with every detail.", "Enter")
    terminal.sees("tokens/s · Esc stops")
    terminal.presses("Escape")
    terminal.sees("[stopped]")
    terminal.end()

    terminal.start()
    terminal.sees("[stopped]")
    terminal.presses("Go on.", "Enter")
    shown = terminal.sees("tokens restored in")
    restored, total = (
        int(n.replace(",", "")) for n in re.search(r"([\d,]+) of ([\d,]+) tokens restored", shown).groups()
    )
    assert total - restored <= 16  # whole leaves are kept, and of the last token no KV was computed yet
    terminal.sees("exact;")
    terminal.presses("C-t")
    terminal.sees("PRIVATE")
    terminal.presses("xyzzy-canary: remember this", "Enter")
    terminal.sees("xyzzy-canary", "exact;")
    terminal.end()
    files = [path.read_bytes() for path in data_dir.rglob("*") if path.is_file()]
    assert any(b"What is a lighthouse?" in file for file in files)
    assert not any(b"xyzzy-canary" in file for file in files)


def test_a_closed_window_keeps_what_was_said(terminal):
    """Guards SIGHUP with the terminal gone: the part of the answer is kept, and no process stays behind."""
    terminal.start()
    terminal.sees("Nothing was said yet")
    terminal.presses("Tell a very long story about a lighthouse.", "Enter")
    terminal.sees("tokens/s · Esc stops")
    terminal.closes_window()
    terminal.start()
    terminal.sees("[stopped]")
    terminal.end()
