"""The child process that runs chat templates: jinja2's sandbox under limits of the operating system.

A script, not a module of the package: it imports jinja2 and nothing of ours. A template is a program from a
file somebody else made; the sandbox keeps it from Python's insides, but not from looping or growing for ever,
so this process has little memory and processor time and writes no files, and its parent kills it when it is
late. Speaks length-prefixed JSON on stdin and stdout: first the limits and the template, then jobs.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.parser import Parser

_LENGTH = struct.Struct("<Q")


class GenerationTag(Extension):
    """`{% generation %}` marks answers for training; here it only has to be understood."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own form

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Give back what stands between the tags."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class RaisedByTemplateError(Exception):
    """The template called raise_exception: it refuses these messages."""


def main() -> None:
    """Answer jobs until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's to handle
    setup = _read()
    _limit_process(setup["memory_bytes"])
    template: Template | None = None
    while (request := _read()) is not None:
        _limit_processor(setup["cpu_seconds"])
        try:
            if template is None:
                template = _compile(setup["source"])
            reply: dict[str, Any] = {
                "texts": [_render(template, job, setup["output_chars"]) for job in request["jobs"]]
            }
        except Exception as error:  # noqa: BLE001  # the edge of this process: every failure becomes a reply
            reply = {"error": _name(error), "refused": isinstance(error, RaisedByTemplateError)}
        _write(reply)


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment.from_string(source)


def _render(template: Template, job: dict[str, Any], output_chars: int) -> str:
    now = datetime.fromtimestamp(job["now"])  # noqa: DTZ006  # templates want the wall clock
    chunks: list[str] = []
    left = output_chars + sum(len(message["content"]) for message in job["variables"]["messages"])
    for chunk in template.generate(**job["variables"], strftime_now=now.strftime):
        left -= len(chunk)
        if left < 0:
            raise MemoryError
        chunks.append(chunk)
    return "".join(chunks)


def _to_json(value: object, indent: int | None = None, **_options: object) -> str:
    """Plain JSON, unlike jinja2's own filter, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: object) -> str:
    raise RaisedByTemplateError(str(message))


def _name(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it grew too large"
    kind = "it refuses these messages" if isinstance(error, RaisedByTemplateError) else type(error).__name__
    return f"{kind}: {(str(error).splitlines() or [''])[0]}"[:300]


def _limit_process(memory_bytes: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),  # jinja2 and codecs import a few files late
    ):
        resource.setrlimit(what, (most, most))


def _limit_processor(seconds: int) -> None:
    """Allow `seconds` more than what was used so far; the parent's clock is stricter while it lives."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _read() -> Any:
    prefix = sys.stdin.buffer.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    return json.loads(sys.stdin.buffer.read(_LENGTH.unpack(prefix)[0]))


def _write(reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode()
    sys.stdout.buffer.write(_LENGTH.pack(len(data)) + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
