"""`edgekv bench ...`: arguments to a measurement, its rows to a table or one JSON object. No measuring here."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from edgekv.bench import chat as chatting
from edgekv.bench import cli_long, opening
from edgekv.bench import decode as decoding
from edgekv.bench import encryption as encrypting
from edgekv.bench import fidelity as faithful
from edgekv.bench import io as reading
from edgekv.bench import needles as hidden
from edgekv.bench import prefill as prefilling
from edgekv.bench import quality as keeping
from edgekv.bench import resume as resuming
from edgekv.bench import tiers as tiering
from edgekv.bench import writes as writing
from edgekv.bench.command import (
    AsJson,
    Context,
    Contexts,
    Peer,
    PeerContext,
    Runs,
    TextPath,
    begin,
    print_rows,
    progress,
    set_unless_given,
    write,
)
from edgekv.bench.fio import HOW_TO_GET, find_fio
from edgekv.bench.machine import measure_machine
from edgekv.bench.peer import PEER
from edgekv.bench.setting import Setting, scratch, storage_errors
from edgekv.bench.text import has_bindings
from edgekv.cli.options import Given, with_options
from edgekv.engine.machine import choose_device

if TYPE_CHECKING:
    from edgekv.config import Config

app = typer.Typer(
    name="bench",
    help="Measure edgekv on this machine, and a peer beside it in the same run.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)
for long_command in (cli_long.perplexity, cli_long.passkey, cli_long.soak):
    app.command()(long_command)


@app.command()
@with_options
def prefill(
    given: Given,
    *,
    peer: Peer = None,
    context: Contexts = None,
    runs: Runs = 5,
    peer_context: PeerContext = prefilling.PEER_CONTEXT,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """How fast a cold context is computed. Default contexts: 2048 and 7936 tokens.

    With --attention selected contexts may be longer than the trained window, and a row tells how much of the
    shortest one's speed is kept. A bundled text that is too short is repeated.
    """
    setting, machine = begin(given, text, peer)
    rows = prefilling.measure(setting, context or prefilling.CONTEXTS, runs, peer_context)
    print_rows("prefill", setting, machine, rows, as_json=as_json)


@app.command()
@with_options
def decode(
    given: Given,
    *,
    peer: Peer = None,
    context: Contexts = None,
    runs: Runs = 5,
    peer_context: PeerContext = decoding.PEER_CONTEXT,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """How fast tokens follow each other. Default contexts: 512, 2048 and 7936 tokens.

    One sequence grows from context to context, all of it in the device pool; with --device-budget within the limits
    instead, what they do not take in a store on disk. --attention selected allows any length, and a row tells how
    much of the speed at 2048 tokens is kept. Beyond 2048 tokens the peer's cache is filled with copies of them.
    """
    setting, machine = begin(given, text, peer)
    rows = decoding.measure(setting, context or decoding.CONTEXTS, runs, machine, peer_context)
    print_rows("decode", setting, machine, rows, as_json=as_json)


@app.command()
@with_options
def resume(
    given: Given,
    *,
    peer: Peer = None,
    context: Contexts = None,
    runs: Runs = 5,
    cold_runs: Annotated[
        int, typer.Option(min=0, metavar="N", help="Runs from nothing; 0: none.")
    ] = resuming.COLD_RUNS,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """How soon a stored conversation answers after a restart. Default context: 7936 tokens.

    With --attention selected contexts may be longer than the trained window, and a row compares longer ones with
    the shortest. The peer runs at contexts within the window.
    """
    setting, machine = begin(given, text, peer)
    rows = resuming.measure(setting, context or [resuming.CONTEXT], runs, cold_runs, machine)
    print_rows("resume", setting, machine, rows, as_json=as_json)


@app.command()
@with_options
def tiers(
    given: Given,
    *,
    context: Context = tiering.CONTEXT,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens to compare.")] = tiering.STEPS,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """Whether small limits change answers, and are kept. Default: --device-budget 8MiB --host-budget 32MiB."""
    limits = _small_limits(given)
    setting, machine = begin(given, text, None)
    rows = tiering.measure(setting, limits, context, steps)
    print_rows("tiers", setting, machine, rows, as_json=as_json)


@app.command()
@with_options
def writes(
    given: Given,
    *,
    turns: Annotated[
        int, typer.Option(min=1, metavar="N", help="Turns of 64 to 100 tokens.")
    ] = writing.TURNS,
    long_tokens: Annotated[
        int, typer.Option(min=16, metavar="N", help="Tokens of the long conversation of made-up leaves.")
    ] = writing.LONG_TOKENS,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """How many bytes reach the disk for each byte that has to."""
    setting, machine = begin(given, text, None)
    rows = writing.measure(setting, turns) + writing.measure_long(setting, long_tokens)
    print_rows("writes", setting, machine, rows, as_json=as_json)


@app.command()
@with_options
def io(
    given: Given,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Two sizes, one depth: half a minute.")] = False,
    as_json: AsJson = False,
) -> None:
    """How fast leaves are read and extents appended, against fio on the same drive. About four minutes."""
    config, fio = given.config(), find_fio()
    if fio is None:
        sys.stderr.write(HOW_TO_GET + "\n")
    machine = measure_machine(config.data_dir, choose_device("cpu"))
    peer = {"peer": f"{fio.version}, {fio.engine}, direct" if fio else None}
    plan = reading.QUICK if quick else reading.Plan()
    with storage_errors(), scratch(config.data_dir) as folder:
        rows = reading.measure(folder, plan, fio, progress)
    write("io", {**machine, **peer}, rows, as_json=as_json)


@app.command()
@with_options
def encryption(
    given: Given,
    *,
    context: Context = encrypting.TOKENS,
    runs: Runs = 5,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """What encryption at rest costs: the store encrypted, and not encrypted as its peer."""
    setting, machine = begin(given, text, None)
    print_rows("encryption", setting, machine, encrypting.measure(setting, context, runs), as_json=as_json)


@app.command("open")
@with_options
def open_(
    given: Given,
    *,
    size: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="Bytes of the store; its KV is holes.")
    ] = opening.SIZE_BYTES,
    runs: Runs = 3,
    as_json: AsJson = False,
) -> None:
    """How soon a big store is open, after a clean close and after a kill. Needs no model."""
    config = given.config()
    machine = measure_machine(config.data_dir, choose_device("cpu"))
    with scratch(config.data_dir) as folder:
        write("open", machine, opening.measure(folder / "store", size, runs), as_json=as_json)


@app.command()
@with_options
def chat(
    given: Given,
    *,
    messages: Annotated[
        int, typer.Option(min=2, metavar="N", help="Messages in the history.")
    ] = chatting.MESSAGES,
    keys: Annotated[int, typer.Option(min=1, metavar="N", help="Keys to time.")] = chatting.KEYS,
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Starts to time.")] = chatting.STARTS,
    as_json: AsJson = False,
) -> None:
    """How soon the full-screen chat is there, and a key is seen while an answer streams."""
    config = given.config()
    machine = measure_machine(config.data_dir, choose_device("cpu"))
    with storage_errors(), scratch(config.data_dir) as folder:
        rows = chatting.measure_import(runs) + chatting.measure_starts(folder, runs)
        rows += chatting.measure_echo(config, folder, messages, keys)
    write("chat", machine, rows, as_json=as_json)


@app.command()
@with_options
def fidelity(
    given: Given,
    *,
    peer: Peer = None,
    positions: Annotated[
        int, typer.Option(min=2, metavar="N", help="Tokens to compare.")
    ] = faithful.POSITIONS,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """How close our distributions are to llama.cpp's (if it is there) and to an fp32 reference's."""
    default = PEER if has_bindings() else None
    setting, machine = begin(given, text, default if peer is None else peer)
    print_rows("fidelity", setting, machine, faithful.measure(setting, positions), as_json=as_json)


@app.command()
@with_options
def quality(
    given: Given,
    *,
    context: Context = keeping.CONTEXT,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens to force after it.")] = keeping.STEPS,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="Method of selection; may be repeated. Default: --selection."),
    ] = None,
    needles: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Needle items as JSON lines. Default: bundled ones.")
    ] = None,
    items: Annotated[int, typer.Option(min=0, metavar="N", help="Needle items to try.")] = hidden.ITEMS,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """What reading only --budget tokens costs in quality: distance to exact attention, needles found."""
    config = given.config().replace({"attention": "selected"})
    setting = Setting(config, text, wants_front=True)
    plan = keeping.Plan.of(setting, context, steps, policy or ())
    found = hidden.load_items(needles, items)
    setting.check_room(context + steps + 1)
    machine = measure_machine(config.data_dir, choose_device(config.device))
    with setting.engine(setting.roomy(setting.model.front.context_length)) as engine:
        rows = keeping.measure(setting, engine, plan, progress)
        rows += hidden.measure(setting, engine, found, plan.policies, progress)
    print_rows("quality", setting, machine, rows, as_json=as_json)


def _small_limits(given: Given) -> Config:
    """This command's own limits, but for those that an option, the environment or the TOML file set."""
    small = {"device_budget": tiering.DEVICE_BYTES, "host_budget": tiering.HOST_BYTES, "attention": "exact"}
    return set_unless_given(given, given.config(), small)
