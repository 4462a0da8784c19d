"""The terminal in which `bench chat` runs the real program."""

import os
import sys

import pytest

from edgekv.bench import chat
from edgekv.bench.terminal import Terminal
from edgekv.config import Config
from edgekv.errors import ConfigError

PROGRAM = (
    "import os, sys\n"
    "print(os.isatty(0), *os.get_terminal_size(), flush=True)\n"
    "for line in sys.stdin: print('got', line.strip(), flush=True)"
)


def test_a_program_is_driven_by_keys_and_ended():
    """Guards the figures: what is waited for is what was drawn after the key, and nothing is left running."""
    with Terminal([sys.executable, "-c", PROGRAM], os.environ, columns=90, rows=20) as terminal:
        terminal.wait_for("True 90 20")
        terminal.press("hello\r")
        terminal.wait_for("never", "got hello")
        terminal.press("")
        with pytest.raises(ConfigError, match="did not show 'got hello'"):
            terminal.wait_for("got hello", patience_s=0.05)
    assert terminal._process.returncode is not None


def test_options_reach_the_program_as_they_were_given(tmp_path):
    """Guards a measurement under other options than those asked for."""
    config = Config(data_dir=tmp_path, threads=1, attention="selected")
    assert chat._options(config) == {"data_dir": str(tmp_path), "threads": "1", "attention": "selected"}


def test_importing_is_measured_in_an_interpreter_of_its_own():
    """Guards the figure of `import edgekv`, which is loaded here already: it would cost nothing."""
    (row,) = chat.measure_import(runs=1)
    assert row.metric == "import_s"
    assert row.ours > 0.005
