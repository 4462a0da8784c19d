"""`edgekv bench ...`: arguments to a measurement, its rows to a table or one JSON object. No measuring here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekv import __version__
from edgekv.bench import decode as decoding
from edgekv.bench import encryption as encrypting
from edgekv.bench import fidelity as faithful
from edgekv.bench import io as reading
from edgekv.bench import needles as hidden
from edgekv.bench import opening
from edgekv.bench import prefill as prefilling
from edgekv.bench import quality as keeping
from edgekv.bench import resume as resuming
from edgekv.bench import tiers as tiering
from edgekv.bench import writes as writing
from edgekv.bench.fio import HOW_TO_GET, find_fio
from edgekv.bench.machine import measure_machine
from edgekv.bench.peer import PEER, check_peer
from edgekv.bench.report import Report
from edgekv.bench.setting import Setting, scratch, storage_errors
from edgekv.bench.text import has_bindings
from edgekv.cli.options import Given, with_options
from edgekv.cli.output import write_json
from edgekv.config import Config
from edgekv.engine.machine import choose_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekv.bench.report import Row

app = typer.Typer(
    name="bench",
    help="Measure edgekv on this machine, and a peer beside it in the same run.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")]
Peer = Annotated[str | None, typer.Option(metavar=PEER, help=f"Run this program too, in turn: {PEER}.")]
Contexts = Annotated[list[int] | None, typer.Option(min=2, metavar="N", help="Tokens; may be repeated.")]
Context = Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of the conversation.")]
Runs = Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each program; medians are shown.")]
TextPath = Annotated[
    Path | None, typer.Option("--text", metavar="PATH", help="Text to use. Default: a novel.")
]


@app.command()
@with_options
def prefill(
    given: Given,
    *,
    peer: Peer = None,
    context: Contexts = None,
    runs: Runs = 5,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """How fast a cold context is computed. Default contexts: 2048 and 7936 tokens."""
    setting, machine = _begin(given, text, peer)
    rows = prefilling.measure(setting, context or prefilling.CONTEXTS, runs)
    _print("prefill", setting, machine, rows, as_json=as_json)


@app.command()
@with_options
def decode(
    given: Given,
    *,
    peer: Peer = None,
    context: Contexts = None,
    runs: Runs = 5,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """How fast tokens follow each other. Default contexts: 512, 2048 and 7936 tokens."""
    setting, machine = _begin(given, text, peer)
    rows = decoding.measure(setting, context or decoding.CONTEXTS, runs, machine)
    _print("decode", setting, machine, rows, as_json=as_json)


@app.command()
@with_options
def resume(
    given: Given,
    *,
    peer: Peer = None,
    context: Contexts = None,
    runs: Runs = 5,
    cold_runs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs from nothing.")
    ] = resuming.COLD_RUNS,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """How soon a stored conversation answers after a restart. Default context: 7936 tokens."""
    setting, machine = _begin(given, text, peer)
    rows = []
    for tokens in context or [resuming.CONTEXT]:
        rows += resuming.measure(setting, tokens, runs, cold_runs, machine)
    _print("resume", setting, machine, rows, as_json=as_json)


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
    setting, machine = _begin(given, text, None)
    rows = tiering.measure(setting, limits, context, steps)
    _print("tiers", setting, machine, rows, as_json=as_json)


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
    setting, machine = _begin(given, text, None)
    rows = writing.measure(setting, turns) + writing.measure_long(setting, long_tokens)
    _print("writes", setting, machine, rows, as_json=as_json)


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
        rows = reading.measure(folder, plan, fio, _progress)
    _write("io", {**machine, **peer}, rows, as_json=as_json)


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"measuring: {what}\n")


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
    setting, machine = _begin(given, text, None)
    _print("encryption", setting, machine, encrypting.measure(setting, context, runs), as_json=as_json)


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
        _write("open", machine, opening.measure(folder / "store", size, runs), as_json=as_json)


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
    setting, machine = _begin(given, text, default if peer is None else peer)
    _print("fidelity", setting, machine, faithful.measure(setting, positions), as_json=as_json)


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
        rows = keeping.measure(setting, engine, plan, _progress)
        rows += hidden.measure(setting, engine, found, plan.policies, _progress)
    _print("quality", setting, machine, rows, as_json=as_json)


def _small_limits(given: Given) -> Config:
    """This command's own limits, but for those that an option, the environment or the TOML file set."""
    small = {"device_budget": tiering.DEVICE_BYTES, "host_budget": tiering.HOST_BYTES, "attention": "exact"}
    return _set_unless_given(given, given.config(), small)


def _set_unless_given(given: Given, config: Config, values: Mapping[str, object]) -> Config:
    default = Config()
    unset = {
        name: value
        for name, value in values.items()
        if name not in given.options and getattr(config, name) == getattr(default, name)
    }
    return config.replace(unset)


def _begin(given: Given, text: Path | None, peer: str | None) -> tuple[Setting, Mapping[str, object]]:
    """Options, and the machine's limits before anything else runs. Errors of options come first."""
    config = _set_unless_given(given, given.config(), {"attention": "exact"})
    setting = Setting(config, text, check_peer(peer))
    device = choose_device(config.device)
    _ = setting.text  # a missing model or text is told before the seconds of measuring
    return setting, measure_machine(config.data_dir, device)


def _print(
    command: str, setting: Setting, machine: Mapping[str, object], rows: Sequence[Row], *, as_json: bool
) -> None:
    _write(command, {**machine, **setting.machine_notes()}, rows, as_json=as_json)


def _write(command: str, machine: Mapping[str, object], rows: Sequence[Row], *, as_json: bool) -> None:
    report = Report(f"bench {command}", __version__, machine, rows)
    if as_json:
        write_json(report.as_object())
    else:
        sys.stdout.write(report.as_table() + "\n")
