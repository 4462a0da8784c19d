"""`bench chat`: the full-screen chat as a person has it, in a terminal: its start, and how soon a key is seen.
Beside it what `import edgekv` costs every program.

The real program runs in a process of its own and is driven by keys. An echo is timed from writing the key to the
terminal until its letter is drawn, while an answer streams below a history of many messages. Knows what is drawn
only; nothing of how the chat is made.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from edgekv.bench.report import Labels
from edgekv.bench.terminal import Terminal
from edgekv.config import FIELDS
from edgekv.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgekv.bench.report import Row
    from edgekv.config import Config

NAME = "bench"
MESSAGES = 500
KEYS = 100
STARTS = 5
READY = "ay something"  # the cursor stands on the first letter
ANSWERING = "tokens/s"
PAUSE_S = 0.06
STOPPED_S = 1.0
"""So long without a new figure of its speed, and an answer has ended: another one is asked for."""
LETTERS = [chr(code) for code in range(0x100, 0x180) if chr(code).isalpha()]
ASK = "Tell a very long story about the sea, with many details.\r"
AGAIN = "\x12"  # Ctrl+R
CLEAR = "\x15"  # Ctrl+U


def measure_starts(folder: Path, runs: int = STARTS) -> list[Row]:
    """Seconds until the chat can be written in, where there is no model; the first run warms the page cache."""
    nothing = str(folder / "there-is-no-model.gguf")
    options = {"data_dir": str(folder / "empty"), "model": nothing}
    times = []
    for _ in range(runs + 1):
        with _chat(options) as terminal:
            times.append(terminal.wait_for(READY) - terminal.began)
    labels = Labels(attention=None, text="the program")
    return [labels.measured("chat_start_without_model_s", "seconds", times[1:], better="lower")]


def measure_import(runs: int = STARTS) -> list[Row]:
    """Seconds that `import edgekv` takes in a fresh interpreter; the first run warms the page cache."""
    code = "import time; began = time.perf_counter(); import edgekv; print(time.perf_counter() - began)"
    times = []
    for _ in range(runs + 1):
        done = subprocess.run(  # noqa: S603  our own words only
            [sys.executable, "-c", code], env=_environ(), capture_output=True, text=True, check=True
        )
        times.append(float(done.stdout))
    labels = Labels(attention=None, text="the package")
    return [labels.measured("import_s", "seconds", times[1:], better="lower")]


def measure_echo(config: Config, folder: Path, num_messages: int, num_keys: int) -> list[Row]:
    """Milliseconds from a key to its letter, median and 95th percentile, while an answer streams."""
    config = config.replace({"data_dir": folder / "chat", "encryption": "off", "max_tokens": 4000})
    _make_history(config, num_messages // 2)
    with _chat(_options(config)) as terminal:
        terminal.wait_for(READY)
        terminal.wait_for("exchange")
        terminal.rest(1.0)
        terminal.press(ASK)
        terminal.wait_for(ANSWERING, patience_s=600)
        times = [_echo(terminal, LETTERS[at % len(LETTERS)], at) * 1000 for at in range(num_keys)]
    times.sort()
    labels = Labels(attention=config.attention, text=f"{num_messages} messages")
    p95 = times[min(len(times) - 1, round(0.95 * len(times)))]
    return [
        labels.row("chat_key_echo_p50_ms", "ms", ours=statistics.median(times), runs=num_keys),
        labels.row("chat_key_echo_p95_ms", "ms", ours=p95, runs=num_keys),
    ]


def _echo(terminal: Terminal, letter: str, at: int) -> float:
    """Press one key; seconds until its letter is drawn. Sees to it that an answer is being made."""
    if at % len(LETTERS) == 0:
        terminal.press(CLEAR)
        terminal.rest(PAUSE_S)
    terminal.press("")
    deadline = time.perf_counter() + STOPPED_S
    while ANSWERING.encode() not in terminal.drawn:
        if time.perf_counter() > deadline:
            terminal.press(AGAIN)
            terminal.wait_for(ANSWERING, patience_s=600)
        terminal.read(0.05)
    terminal.press(letter)
    began = time.perf_counter()
    seconds = terminal.wait_for(letter) - began
    terminal.rest(PAUSE_S)
    return seconds


def _make_history(config: Config, num_exchanges: int) -> None:
    """A kept conversation of short exchanges; its KV is made by the first answer."""
    said = [
        (f"What is exchange {number} about?", f"It is **exchange {number}**:\n\n- short\n- with a list")
        for number in range(num_exchanges)
    ]
    with Runtime(config=config) as runtime:
        runtime.conversation(NAME).add_exchanges(said)


def _options(config: Config) -> dict[str, str]:
    """What differs from the defaults, as the command line takes it."""
    default = type(config)()
    values = {name: getattr(config, name) for name in FIELDS}
    return {name: str(value) for name, value in values.items() if value != getattr(default, name)}


def _chat(options: Mapping[str, str]) -> Terminal:
    arguments: Sequence[str] = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    program = "from edgekv.cli import main; main()"
    return Terminal([sys.executable, "-c", program, "chat", *arguments], _environ())


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
