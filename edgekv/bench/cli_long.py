"""`edgekv bench` commands for what is far longer than the trained window; see `cli`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekv.bench import passkey as hiding
from edgekv.bench import perplexity as streaming
from edgekv.bench import soak as soaking
from edgekv.bench.command import AsJson, TextPath, measured, print_rows, progress, set_unless_given
from edgekv.bench.setting import Setting
from edgekv.cli.options import Given, with_options

if TYPE_CHECKING:
    from edgekv.config import Config

_MIN_BUDGET, _MIN_WINDOW = 128, 64  # tokens, the least that the options take


@with_options
def perplexity(
    given: Given,
    *,
    tokens: Annotated[
        int, typer.Option(min=33, metavar="N", help="Tokens of the text, from its beginning.")
    ] = streaming.TOKENS,
    sliding_window: Annotated[
        int, typer.Option(min=16, metavar="N", help="Tokens that the exact window reads.")
    ] = streaming.WINDOW,
    sink: Annotated[
        bool,
        typer.Option(help="Whether the window reads the first 16 tokens too, without which it is far worse."),
    ] = True,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity of a long text under a budget, against an exact sliding window in as much device memory.

    Computed in blocks, which read --prefill-budget tokens of the past: by default as many as the exact window, in
    whole blocks, six of seven of them the latest. The bundled novel has about 15,000 tokens: give a longer --text,
    or fewer --tokens.
    """
    budget = max(_MIN_BUDGET, sliding_window // streaming.BLOCK_TOKENS * streaming.BLOCK_TOKENS)
    config = set_unless_given(given, _selected(given), {"prefill_budget": budget})
    config = set_unless_given(given, config, {"window": max(_MIN_WINDOW, config.prefill_budget * 6 // 7)})
    setting = Setting(config, text)
    setting.text.take(tokens)
    machine = measured(setting)
    rows = streaming.measure(setting, tokens, sliding_window, has_sink=sink, progress=progress)
    print_rows("perplexity", setting, machine, rows, as_json=as_json)


@with_options
def passkey(
    given: Given,
    *,
    context: Annotated[
        int, typer.Option(min=256, metavar="N", help="Tokens of the long conversation.")
    ] = hiding.CONTEXT,
    short_context: Annotated[
        int, typer.Option(min=256, metavar="N", help="Tokens of the one that exact attention reads.")
    ] = hiding.SHORT_CONTEXT,
    depth: Annotated[
        list[int] | None,
        typer.Option(
            min=0, max=100, metavar="PERCENT", help="Where it is hidden; may be repeated. Default: quarters."
        ),
    ] = None,
    numbers: Annotated[
        int,
        typer.Option(min=1, max=12, metavar="N", help="Numbers to hide around each depth, one at a time."),
    ] = 1,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """Whether a number hidden anywhere in a conversation beyond the trained window is found under --budget."""
    setting = Setting(_selected(given), text, wants_front=True)
    setting.check_room(short_context)
    machine = measured(setting)
    rows = hiding.measure(setting, context, short_context, depth or hiding.DEPTHS, numbers, progress)
    print_rows("passkey", setting, machine, rows, as_json=as_json)


@with_options
def soak(
    given: Given,
    *,
    tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens to compute before it ends.")
    ] = soaking.TOKENS,
    text: TextPath = None,
    as_json: AsJson = False,
) -> None:
    """Whether every limit is kept while many conversations are said to, branched, resumed and forgotten.

    One Runtime under selected attention. Default limits: 2,048 tokens on the device, 6,144 on the host, 24,576 on
    disk, and 256 tokens a step (512 in prefill); --seed decides what happens (1).
    """
    setting = Setting(_selected(given), text)
    limits = soaking.default_limits(setting)
    setting = Setting(set_unless_given(given, setting.config, limits), text)
    machine = measured(setting)
    rows = soaking.measure(setting, tokens, progress)
    print_rows("soak", setting, machine, rows, as_json=as_json)


def _selected(given: Given) -> Config:
    return set_unless_given(given, given.config(), {"attention": "selected"})
