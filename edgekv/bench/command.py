"""What every `edgekv bench` command does before and after it measures: options to a setting, rows to print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekv import __version__
from edgekv.bench.machine import measure_machine
from edgekv.bench.peer import PEER, check_peer
from edgekv.bench.report import Report
from edgekv.bench.setting import Setting
from edgekv.cli.output import write_json
from edgekv.config import Config
from edgekv.engine.machine import choose_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekv.bench.report import Row
    from edgekv.cli.options import Given

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")]
Peer = Annotated[str | None, typer.Option(metavar=PEER, help=f"Run this program too, in turn: {PEER}.")]
Contexts = Annotated[list[int] | None, typer.Option(min=2, metavar="N", help="Tokens; may be repeated.")]
Context = Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of the conversation.")]
Runs = Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each program; medians are shown.")]
TextPath = Annotated[
    Path | None, typer.Option("--text", metavar="PATH", help="Text to use. Default: a novel.")
]
PeerContext = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Longest context, in tokens, that the peer runs too.")
]


def progress(what: str) -> None:
    """Tell a person at a terminal what is being measured."""
    if sys.stderr.isatty():
        sys.stderr.write(f"measuring: {what}\n")


def set_unless_given(given: Given, config: Config, values: Mapping[str, object]) -> Config:
    """`values` where neither an option nor the environment or the TOML file says otherwise."""
    default = Config()
    unset = {
        name: value
        for name, value in values.items()
        if name not in given.options and getattr(config, name) == getattr(default, name)
    }
    return config.replace(unset)


def begin(given: Given, text: Path | None, peer: str | None) -> tuple[Setting, Mapping[str, object]]:
    """Options, and the machine's limits before anything else runs. Errors of options come first."""
    config = set_unless_given(given, given.config(), {"attention": "exact"})
    setting = Setting(config, text, check_peer(peer))
    return setting, measured(setting)


def measured(setting: Setting) -> Mapping[str, object]:
    """The machine's limits, once the setting has shown to be one that can be measured."""
    device = choose_device(setting.config.device)
    _ = setting.text  # a missing model or text is told before the seconds of measuring
    return measure_machine(setting.config.data_dir, device)


def print_rows(
    command: str, setting: Setting, machine: Mapping[str, object], rows: Sequence[Row], *, as_json: bool
) -> None:
    """Print what was measured, beside the limits of the machine and how the programs ran."""
    write(command, {**machine, **setting.machine_notes()}, rows, as_json=as_json)


def write(command: str, machine: Mapping[str, object], rows: Sequence[Row], *, as_json: bool) -> None:
    """The same where no setting was made."""
    report = Report(f"bench {command}", __version__, machine, rows)
    if as_json:
        write_json(report.as_object())
    else:
        sys.stdout.write(report.as_table() + "\n")
