"""`edgekv serve`: the OpenAI protocol on this machine."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path  # noqa: TC003  typer reads it at run time
from typing import TYPE_CHECKING, Annotated

import typer

from edgekv.cli.options import Given, with_options
from edgekv.cli.passphrase import asker
from edgekv.config import parse_bytes
from edgekv.errors import ConfigError
from edgekv.runtime import Runtime

if TYPE_CHECKING:
    import socket

    from edgekv.config import Config


@with_options
def serve(
    given: Given,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port on 127.0.0.1 (8377); 0: any.")
    ] = None,
    unix: Annotated[
        Path | None, typer.Option("--socket", metavar="PATH", help="A Unix socket, 0600, instead of a port.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where the bearer token is, or is made. Default: in the data folder."
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Every program on this machine that reaches it may use it.")
    ] = False,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Largest request (16MiB).")] = "16MiB",
) -> None:
    """Serve programs on this machine (OpenAI protocol). Nothing is kept unless a request names a conversation."""
    config = given.config()
    if no_token and token_file is not None:
        raise ConfigError("--no-token and --token-file exclude each other")
    if unix is not None and port is not None:
        raise ConfigError("--socket and --port exclude each other")
    try:
        most_body_bytes = parse_bytes(max_body)
    except ValueError as error:
        raise ConfigError(f"--max-body {max_body}: {error}") from error
    with contextlib.ExitStack() as stack:
        listening, where = _listen(port, unix, stack)
        runtime = stack.enter_context(Runtime(config=config, passphrase=asker()))
        if runtime.degraded is not None:
            sys.stderr.write(f"edgekv: nothing is kept on disk: {runtime.degraded}\n")
        _serve(runtime, listening, where, _token(config, token_file, no_token=no_token), most_body_bytes)


def _listen(port: int | None, unix: Path | None, stack: contextlib.ExitStack) -> tuple[socket.socket, str]:
    """The socket, before the model is loaded: a taken port is told at once."""
    try:
        from edgekv.server import app, run  # noqa: F401, PLC0415  optional; both now, before the model is loaded
    except ImportError as error:
        missing = (error.name or "its libraries").partition(".")[0]
        raise ConfigError(f"the server needs {missing}: pip install 'edgekv[server]'") from error
    if unix is not None:
        return stack.enter_context(run.listen_on_path(unix)), f"the socket {unix}"
    listening = run.listen_on_port(run.DEFAULT_PORT if port is None else port)
    stack.callback(listening.close)
    return listening, f"http://{run.HOST}:{listening.getsockname()[1]}/v1"


def _token(config: Config, path: Path | None, *, no_token: bool) -> tuple[str | None, str]:
    """The token, and where a program finds it."""
    from edgekv.server.token import TOKEN_NAME, token_at  # noqa: PLC0415  as above

    if no_token:
        return None, "no token is asked for: every program that reaches it may use it"
    path = config.data_dir / TOKEN_NAME if path is None else path
    return token_at(path), f"the bearer token is in {path}"


def _serve(
    runtime: Runtime,
    listening: socket.socket,
    where: str,
    token: tuple[str | None, str],
    most_body_bytes: int,
) -> None:
    from edgekv.server import run  # noqa: PLC0415  as above
    from edgekv.server.app import Service  # noqa: PLC0415

    secret, told = token
    service = Service(runtime, most_body_bytes=most_body_bytes)
    sys.stderr.write(f"serving {runtime.stats().model} on {where}; {told}; Ctrl+C ends it\n")
    sys.stderr.flush()
    run.serve(service.app(token=secret), listening)
