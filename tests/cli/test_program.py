"""The command line makes what is asked for, and nothing else changes by that."""

import pytest
import typer.main

from edgekv.cli.commands import app, program


@pytest.mark.parametrize("named", ["run", "chat", "import", "bench"])
def test_a_command_that_is_named_is_made_alone(named):
    """Guards the start: Typer builds a validator for each option of every command, asked for or not."""
    alone = typer.main.get_command(program(named)).commands
    everything = typer.main.get_command(app).commands
    assert list(alone) == [named]
    assert [option.opts for option in alone[named].params] == [o.opts for o in everything[named].params]


@pytest.mark.parametrize("named", [None, "--help", "--version", "key", "chta"])
def test_what_names_no_command_has_them_all(named):
    """Guards the list of commands, and what a misspelt one is told."""
    assert program(named) is app
