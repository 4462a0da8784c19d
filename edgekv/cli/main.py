"""The outer edge: every error becomes one line, or one JSON object, and an exit code.

Knows errors and exit codes only. This and a front end's own loop are the only places that catch everything.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
import traceback
from typing import TYPE_CHECKING, NoReturn, TextIO

import typer

from edgekv.cli.commands import failure_code, program
from edgekv.cli.output import printable, write_json
from edgekv.cli.signals import EXIT_FAILURE, EXIT_PIPE, EXIT_USAGE, ReaderGone, Terminated, exit_code, install
from edgekv.config import load_config
from edgekv.errors import ConfigError, EdgeKVError
from edgekv.shortage import told_as

if TYPE_CHECKING:
    from pathlib import Path

LOG_NAME = "edgekv.log"
LARGEST_LOG_BYTES = 1 << 20
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Of stdout, where no file is named: the store tells of its own files."""
SPIN_COUNT = "3000"
"""How long a thread of a parallel loop spins for the next one, before it sleeps (read when torch is loaded).
The default is a hundred times longer: alone it is no faster, and beside another busy program each token waits
for the scheduler many times over (docs/measurements.md)."""


def main() -> NoReturn:
    """The `edgekv` program."""
    install()
    if sys.argv[1:2] != ["bench"]:  # a benchmark leaves both programs the library's own setting
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        _never_fail_on_characters(stream)
    code = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = EXIT_PIPE
    except OSError as error:
        _report_unwritable(error)
        code = code or EXIT_FAILURE
    if code == EXIT_PIPE:
        _drop_stdout()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        chosen = program(next(iter(arguments), None))
        code = chosen(args=arguments, prog_name="edgekv", standalone_mode=False)
    except EdgeKVError as error:
        _report(type(error).__name__, str(error), as_json=as_json)
        return failure_code(error)
    except typer.Abort:
        _report("Cancelled", "cancelled", as_json=as_json)
        return EXIT_FAILURE
    except (KeyboardInterrupt, Terminated) as stop:
        _report("Cancelled", "stopped by a signal", as_json=as_json, quiet=True)
        return exit_code(stop)
    except (ReaderGone, BrokenPipeError):
        return EXIT_PIPE
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            return _unexpected(error, as_json=as_json)
        _report_unwritable(error)
        return EXIT_FAILURE
    except Exception as error:  # noqa: BLE001  the outer edge
        # Typer's own errors come from one copy of click or another; all tell what was typed wrongly.
        told = getattr(error, "format_message", None)
        if type(error).__name__ == "NoArgsIsHelpError" and not as_json:
            sys.stderr.write(f"{error}\n")
            return EXIT_USAGE
        if told is not None:
            _report("UsageError", f"{told()} (edgekv --help)", as_json=as_json)
            return EXIT_USAGE
        return _unexpected(error, as_json=as_json)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception, *, as_json: bool) -> int:
    where = _log(error)
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    told = told_as(error)
    if told is not error:
        _report(type(told).__name__, f"{told}{where}", as_json=as_json)
        return EXIT_FAILURE
    _report(type(error).__name__, f"internal error {type(error).__name__}{where}", as_json=as_json)
    return EXIT_FAILURE


def _report_unwritable(error: OSError) -> None:
    """On stderr also for --json: stdout is what fails, and would again when Python flushes it at the end."""
    _drop_stdout()
    _report("OSError", f"the output cannot be written: {error.strerror or error}", as_json=False)


def _report(kind: str, message: str, *, as_json: bool, quiet: bool = False) -> None:
    line = printable(" ".join(message.split()))
    if as_json:
        try:
            write_json({"error": {"type": kind, "message": line}})
        except BrokenPipeError:
            _drop_stdout()
        except OSError as error:
            _report_unwritable(error)
    elif not quiet:
        sys.stderr.write(f"edgekv: {line}\n")


def _log(error: BaseException) -> str:
    """Append where it happened to the log, not what was said: the text of an error may quote a conversation."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    entry = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {type(error).__name__}\n{frames}\n"
    try:
        path = _log_path()
        size = path.stat().st_size if path.exists() else 0
        mode = os.O_TRUNC if size > LARGEST_LOG_BYTES else os.O_APPEND
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | mode  # never waits for a pipe
        with os.fdopen(os.open(path, flags, 0o600), "w") as log:
            if not stat.S_ISREG(os.fstat(log.fileno()).st_mode):
                return "; --debug shows where"
            log.write(entry)
    except (OSError, ConfigError):
        return "; --debug shows where"
    return f"; see {path} or add --debug"


def _log_path() -> Path:
    """Beside the data if that folder exists (it is not created for a log)."""
    arguments = sys.argv
    given = {}
    for at, argument in enumerate(arguments):
        if argument == "--data-dir" and at + 1 < len(arguments):
            given["data_dir"] = arguments[at + 1]
        elif argument.startswith("--data-dir="):
            given["data_dir"] = argument.partition("=")[2]
    return load_config(given).data_dir / LOG_NAME


def _never_fail_on_characters(stream: TextIO | None) -> None:
    """A terminal that cannot show a character gets a replacement, not a traceback."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _drop_stdout() -> None:
    """Nobody reads any more: let the interpreter's last flush go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
