"""The commands. Each turns its arguments into calls of the public API and prints what comes back; no logic."""

from __future__ import annotations

import dataclasses
import sys
import time
from copy import copy
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated

import typer

from edgekv import __version__
from edgekv.cli import keep
from edgekv.cli.check import check
from edgekv.cli.key import app as key_app
from edgekv.cli.options import Given, with_options
from edgekv.cli.output import format_bytes, printable, result_object, write_json
from edgekv.cli.passphrase import asker
from edgekv.cli.serve import serve
from edgekv.cli.signals import EXIT_USAGE, Terminated, exit_code
from edgekv.conversation.kept import forget_kept, kept_conversations, require_kept
from edgekv.conversation.unlock import Unlock
from edgekv.errors import ConfigError, EdgeKVError
from edgekv.events import Done, Notice, PrefillProgress, Result, TextDelta
from edgekv.runtime import Runtime
from edgekv.terminal import ProgressLine, can_draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv.conversation import Stream

app = typer.Typer(
    name="edgekv",
    help="Conversations with a local model that survive restarts and may outgrow memory.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.add_typer(key_app)
keep.add_to(app)
app.command()(check)
app.command()(serve)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")]


@app.callback(invoke_without_command=True)
def _edgekv(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"edgekv {__version__}")
        raise typer.Exit


@app.command()
@with_options
def run(
    given: Given,
    prompt: Annotated[str, typer.Argument(help="What to say; - reads it from stdin.")],
    conversation: Annotated[
        str | None, typer.Option("--conversation", "-c", metavar="NAME", help="Continue or begin this one.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Keep nothing on disk.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt. Without -c nothing is kept."""
    config = given.config()
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty")
    private = private or conversation is None
    with Runtime(config=config, durable=not private, passphrase=asker()) as runtime:
        # A second process answers too; a notice says that it keeps nothing, and why.
        chat = runtime.conversation(conversation, private=private, keep=runtime.degraded is None)
        with chat.stream(text) as stream:
            result, stopped = _show(stream, quiet=as_json)
    if as_json:
        write_json(result_object(result))
    if stopped is not None:
        raise typer.Exit(exit_code(stopped))


def _show(stream: Stream, *, quiet: bool) -> tuple[Result, BaseException | None]:
    """Print an answer as it comes; on a signal stop it, take what there is, and return the signal too."""
    stopped: BaseException | None = None
    progress = ProgressLine(sys.stderr)
    while True:
        try:
            for event in stream:
                match event:
                    case PrefillProgress():
                        progress.show(event)
                    case TextDelta(text) if not quiet:
                        progress.clear()
                        sys.stdout.write(text)
                        sys.stdout.flush()
                    case Notice(message):
                        progress.clear()
                        sys.stderr.write(f"edgekv: {message}\n")
                    case Done(result):
                        progress.clear()
                        if not quiet:
                            sys.stdout.write("\n")
                            sys.stdout.flush()
                        return result, stopped
        except (KeyboardInterrupt, Terminated) as signal:
            stopped = signal
            stream.cancel()


@app.command()
@with_options
def chat(
    given: Given,
    name: Annotated[
        str | None, typer.Argument(help="The conversation to begin or continue; the last one used.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Line by line; also reads a pipe.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Keep nothing on disk.")] = False,
) -> None:
    """Talk: full screen on a terminal that can show one, else line by line."""
    config = given.config()
    if plain or not can_draw(sys.stdin, sys.stdout):
        with Runtime(config=config, durable=not private, passphrase=asker()) as runtime:
            code = _front_end("plain")(runtime, name or "main", private=private)
    else:
        code = _front_end("full")(config, name, private=private)
    raise typer.Exit(code)


def _front_end(name: str) -> Callable[..., int]:
    """The front end registered as `name`: the commands know none, so that edgekv never imports one."""
    found = entry_points(group="edgekv.frontends", name=name)
    if not found:
        raise ConfigError("no chat front end is installed; reinstall edgekv")
    front_end: Callable[..., int] = next(iter(found)).load()
    return front_end


@app.command()
@with_options
def conversations(given: Given, as_json: AsJson = False) -> None:
    """List the conversations that are kept."""
    config = given.config()
    infos = kept_conversations(config.data_dir, Unlock.of(config, asker()))
    if as_json:
        write_json({"conversations": [dataclasses.asdict(info) for info in infos]})
        return
    if not infos:
        sys.stderr.write("no conversation is kept yet; `edgekv chat NAME` begins one\n")
    for info in infos:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.updated))
        mark = "  [damaged]" if info.is_damaged else ""
        if info.forgotten_tokens:
            mark += f"  [{info.forgotten_tokens:,} tokens to be computed again: {info.forgotten_why}]"
        line = f"{used}  {info.num_turns:>5} turns  {info.name}  ({info.model}){mark}"
        sys.stdout.write(printable(line) + "\n")


@app.command()
@with_options
def forget(
    given: Given,
    name: Annotated[str, typer.Argument(help="The conversation to destroy.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask (without a terminal nobody is asked).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Destroy a conversation: its text and its KV."""
    config = given.config()
    data_dir, unlock = config.data_dir, Unlock.of(config, asker())
    require_kept(data_dir, name, unlock)
    if not yes and sys.stdin.isatty():  # a script that says forget means it
        typer.confirm(f"Destroy {name!r} and all its turns?", abort=True, err=True)
    for notice in forget_kept(data_dir, name, unlock):
        sys.stderr.write(f"edgekv: {notice}\n")
    if as_json:
        write_json({"forgotten": name})
    else:
        sys.stderr.write(f"forgotten: {name}\n")


@app.command()
@with_options
def models(given: Given, as_json: AsJson = False) -> None:
    """List the GGUF files found on this machine."""
    from edgekv.models.catalog import GET_BUNDLED, find_models  # noqa: PLC0415  only this command looks

    data_dir = given.config().data_dir
    found = find_models([data_dir / "models"])
    if as_json:
        rows = [
            {"name": m.name, "path": str(m.path), "source": m.source, "size_bytes": m.size} for m in found
        ]
        write_json({"models": rows})
        return
    for model in found:
        sys.stdout.write(f"{format_bytes(model.size):>9}  {model.name}  [{model.source}]  {model.path}\n")
    if not found:
        sys.stderr.write(f"no GGUF file found; put one into {data_dir / 'models'} or run: {GET_BUNDLED}\n")


@app.command()
@with_options
def doctor(given: Given, as_json: AsJson = False) -> None:
    """Say what was found, what was chosen and why, and how fast this machine is."""
    from edgekv.doctor import examine  # noqa: PLC0415  torch comes with it

    findings = examine(given.config())
    if as_json:
        write_json({finding.name: dataclasses.asdict(finding) for finding in findings})
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = " " if finding.is_fine else "!"
        why = f"  ({finding.why})" if finding.why else ""
        sys.stdout.write(f"{mark} {finding.name.replace('_', ' '):<{width}}  {finding.value}{why}\n")


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def bench(context: typer.Context) -> None:
    """Measure prefill, decode and resume, and the peers beside them."""
    # By name, and only here: measuring brings llama.cpp and torch, which no other command needs.
    bench_app = import_module("edgekv.bench.cli").app
    code = bench_app(args=context.args, prog_name="edgekv bench", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


def program(named: str | None) -> typer.Typer:
    """`app`, with the command `named` alone if there is one: the options of all take 50 ms to make."""
    only = copy(app)
    only.registered_groups = []
    only.registered_commands = [command for command in app.registered_commands if _name(command) == named]
    return only if only.registered_commands else app


def _name(command: typer.models.CommandInfo) -> str:
    function = command.callback
    return command.name or ("" if function is None else function.__name__)


def failure_code(error: EdgeKVError) -> int:
    """Exit code of an error: 2 for what was typed wrongly, 1 for the rest."""
    return EXIT_USAGE if isinstance(error, ConfigError) else 1
