"""`edgekv key`: the recovery code, its use, and a new master key."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from edgekv.cli.options import Given, with_options
from edgekv.cli.output import write_json
from edgekv.cli.passphrase import asker
from edgekv.config import NEW_PASSPHRASE_VARIABLE
from edgekv.conversation import master
from edgekv.conversation.unlock import Unlock
from edgekv.errors import ConfigError

app = typer.Typer(
    name="key",
    help="The key that opens the data folder: note it, bring it back, replace it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")]


@app.command()
@with_options
def export(
    given: Given,
    yes: Annotated[
        bool, typer.Option("--yes", help="Print it although stdout is a file, a pipe or a program.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the recovery code. It opens everything: write it on paper, not into a file beside the data."""
    config = given.config()
    if not yes and not sys.stdout.isatty():
        raise ConfigError("the recovery code opens everything: print it on a terminal, or add --yes")
    code = master.export_code(config.data_dir, Unlock.of(config, asker()))
    if as_json:
        write_json({"recovery_code": code})
        return
    sys.stdout.write(f"{code}\n")
    sys.stderr.write("whoever has this code and the data can read it; `edgekv key rotate` makes it useless\n")


@app.command()
@with_options
def recover(given: Given, as_json: AsJson = False) -> None:
    """Open the data with the recovery code (typed, or from stdin) and protect its key anew."""
    config = given.config()
    if sys.stdin.isatty():
        sys.stderr.write("Recovery code: ")
        sys.stderr.flush()
    code = sys.stdin.readline()
    done = master.recover(config.data_dir, code, Unlock.of(config, asker()))
    _tell("recovered", done, "the same recovery code stays good", as_json=as_json)


@app.command()
@with_options
def rotate(given: Given, as_json: AsJson = False) -> None:
    """Replace the master key; --key-protection also changes what protects it. Asks for a new passphrase."""
    config = given.config()
    unlock = Unlock.of(config, asker())
    new = os.environ.get(NEW_PASSPHRASE_VARIABLE) or None
    done = master.rotate(config.data_dir, unlock, config.key_protection, new, ask=asker())
    _tell("rotated", done, "an earlier recovery code is useless now: `edgekv key export`", as_json=as_json)


def _tell(what: str, done: master.Protected, then: str, *, as_json: bool) -> None:
    if as_json:
        write_json({what: True, "protection": done.kind, "notices": done.notices})
        return
    sys.stderr.write(f"{what}; protected by: {done.kind}; {then}\n")
    for notice in done.notices:
        sys.stderr.write(f"edgekv: {notice}\n")
