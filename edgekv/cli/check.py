"""`edgekv check`: what the checker found, for a terminal or a program. No logic.

Exit status 0: clean; 1: problems; 2: it could not be checked (no such directory, in use, no key).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgekv.checkup import check_up
from edgekv.cli.options import Given, with_options
from edgekv.cli.output import format_bytes, printable, write_json
from edgekv.cli.passphrase import asker
from edgekv.conversation.unlock import Unlock
from edgekv.errors import StoreError
from edgekv.terminal import can_draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv.checkup import Checkup
    from edgekv_storage import Checked

EXIT_PROBLEMS = 1
EXIT_NOT_CHECKED = 2


@with_options
def check(
    given: Given,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Rebuild the index, seal and set aside segments; never touches text."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")
    ] = False,
) -> None:
    """Verify every byte that is kept: list every record, name what is damaged."""
    config = given.config()
    try:
        checkup = check_up(config.data_dir, Unlock.of(config, asker()), fix=fix, progress=_show_progress())
    except StoreError as error:
        if as_json:
            write_json({"error": {"type": type(error).__name__, "message": " ".join(str(error).split())}})
        else:
            sys.stderr.write(f"edgekv: {error}\n")
        raise typer.Exit(EXIT_NOT_CHECKED) from error
    if as_json:
        left = checkup.left
        fixed = {"fixed": checkup.done, "left": left.as_dict()["problems"]} if left is not None else {}
        write_json({**checkup.found.as_dict(), **fixed, "is_clean": checkup.is_clean})
    else:
        _show(checkup)
    raise typer.Exit(0 if checkup.is_clean else EXIT_PROBLEMS)


def _show(checkup: Checkup) -> None:
    found = checkup.found
    for conversation in found.conversations:
        name = (
            conversation.name if conversation.name is not None else f"(number {conversation.id}, unreadable)"
        )
        _line(f"{conversation.state:<13} conversation {name}: {conversation.num_turns} turns")
    _show_segments(found)
    for note in found.notes:
        _line(f"note: {note}")
    for problem in found.problems:
        _line(f"problem: {problem.file} at {problem.offset}: {problem.reason}")
    for line in checkup.done:
        _line(f"fixed: {line}")
    for problem in checkup.left.problems if checkup.left is not None else []:
        _line(f"left: {problem.file} at {problem.offset}: {problem.reason}")
    records = sum(len(segment.records) for segment in found.segments)
    total = format_bytes(sum(segment.num_bytes for segment in found.segments))
    verdict = "clean" if checkup.is_clean else "problems were found"
    _line(
        f"{verdict}: {len(found.conversations)} conversations, {len(found.segments)} segments, {records} records, "
        f"{total}"
    )


def _show_segments(found: Checked) -> None:
    for segment in found.segments:
        name = found.names.get(segment.sequence_id.hex(), segment.sequence_id.hex()[:8])
        why = f" ({segment.reason})" if segment.reason else ""
        _line(f"{segment.state:<13} {segment.file}, {format_bytes(segment.num_bytes)}, of {name}{why}")
        for record in segment.records:
            why = f" ({record.reason})" if record.reason else ""
            _line(
                f"  {record.state:<13} record {record.number} at {record.offset}: {record.num_bytes} bytes, "
                f"{record.num_leaves} leaves{why}"
            )


def _line(text: str) -> None:
    """Names of files are as others chose them."""
    sys.stdout.write(printable(text) + "\n")


def _show_progress() -> Callable[[int, int], None]:
    """Draws one line on a terminal, which is gone at the end."""
    is_drawn = can_draw(sys.stderr)

    def show(done: int, total: int) -> None:
        if is_drawn and total:
            end = "\r\x1b[K" if done >= total else ""
            sys.stderr.write(f"\rchecked {format_bytes(done)} of {format_bytes(total)}{end}")
            sys.stderr.flush()

    return show
