"""The program `edgekv` with a fake engine, also in a process forked from one that has imported everything already.

A process each, as a person starts it, without the second that Python takes to get there: most tests start several.
"""

import os
import sys
from pathlib import Path

from fakes import FakeFactory

import edgekv.runtime
import edgekv_tui.plain
from edgekv.cli import commands, main


class EntryPoint:
    """A chat, without an installation: the plain one, or one that says that it would be full screen."""

    def __init__(self, name):
        self.name = name

    def load(self):
        return edgekv_tui.plain.run if self.name == "plain" else say_full


def say_full(_config, _name, **_options):
    sys.stdout.write("full screen\n")
    return 0


def run(args, folder, environ, engine_options):
    """Be the program: files of `folder` are its standard streams."""
    os.environ.clear()
    os.environ.update(environ)
    for number, name, mode in ((0, "in", "r"), (1, "out", "w"), (2, "err", "w")):
        with Path(folder, name).open(mode) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["edgekv", *args]
    be_edgekv(engine_options)


def be_edgekv(engine_options):
    """`main` around a fake engine."""
    factory = FakeFactory(**engine_options)
    edgekv.runtime._load_engine_factory = lambda: factory
    edgekv.runtime._model_path = lambda _: Path("fake")
    commands.entry_points = lambda *, name, **_: [EntryPoint(name)]
    main()
