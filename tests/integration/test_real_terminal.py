"""The real program with the real model in a real terminal: `edgekv chat` inside tmux, as a person uses it."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekv.models.catalog import bundled_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bundled_model() is None, reason="the bundled model is not installed"),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
]
PATIENCE_S = 120


@pytest.fixture
def terminal(data_dir, tmp_path):
    """Starts `edgekv chat` in a new tmux session of 80 by 24; what it returns types and looks."""
    root = Path(__file__).parents[2]
    folders = [root, root / "kernels", root / "storage", root / "tui", os.environ.get("PYTHONPATH", "")]
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "EDGEKV_DATA_DIR": str(data_dir),
    }
    socket = tmp_path / "tmux"

    def tmux(*arguments):
        command = ["tmux", "-S", str(socket), "-f", os.devnull, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout

    class Terminal:
        def start(self):
            program = f"{sys.executable} -m edgekv chat --max-tokens 400; echo ended with $?; sleep 1000"
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

    yield Terminal()
    subprocess.run(["tmux", "-S", str(socket), "kill-server"], capture_output=True, check=False)


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
    assert total - restored < 16
    terminal.sees("exact;")
    terminal.presses("C-t")
    terminal.sees("PRIVATE")
    terminal.presses("xyzzy-canary: remember this", "Enter")
    terminal.sees("xyzzy-canary", "exact;")
    terminal.end()
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    assert files
    assert not any(b"xyzzy-canary" in path.read_bytes() for path in files)
