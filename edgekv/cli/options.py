"""Command-line options made from the table in `edgekv.config`.

Knows how a Config field becomes `--an-option`, and which options are refused on purpose. Every command gets
all of them, so that `edgekv run` and the Runtime it makes understand the same words.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from edgekv.cli.signals import ReaderGone
from edgekv.config import Config, environment_name, load_config
from edgekv.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED = {
    "tools": "tool calls",
    "json_schema": "output by JSON schema",
    "image": "images",
    "lora": "adapters",
}


@dataclass(frozen=True, slots=True)
class Given:
    """What was given on the command line, before environment, TOML file and defaults."""

    options: dict[str, object]
    config_path: Path | None
    debug: bool

    def config(self) -> Config:
        """The merged and checked options. Raises ConfigError, or Unsupported for a refused one."""
        for name, what in REFUSED.items():
            if name in self.options:
                flag = "--" + name.replace("_", "-")
                raise Unsupported(f"{flag}: edgekv does not do {what}; leave the option out")
        return load_config(self.options, config_path=self.config_path)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command(given, ...)` every option of the table, collected into `given`."""
    own = [
        parameter.replace(annotation=hint)
        for parameter, hint in _parameters(command)
        if parameter.name != "given"
    ]
    extra = [_parameter(name, annotation) for name, annotation in _options().items()]
    names = [parameter.name for parameter in extra]

    def wrapper(**values: Any) -> None:
        options = {name: value for name in names if (value := values.pop(name)) is not None}
        config_path = options.pop("config", None)
        debug = bool(options.pop("debug", False))
        try:
            command(Given(options, config_path, debug), **values)
        except BrokenPipeError as error:  # click would end the process itself, with another code
            raise ReaderGone from error

    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    parameters = [*own, *extra]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _parameters(command: Callable[..., None]) -> list[tuple[inspect.Parameter, Any]]:
    hints = get_type_hints(command, include_extras=True)
    return [
        (parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY), hints[parameter.name])
        for parameter in inspect.signature(command).parameters.values()
    ]


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _options() -> dict[str, Any]:
    """Option name to annotation, in the table's order; values stay text until the Config checks them."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        option = typer.Option(
            "--" + field.name.replace("_", "-"),
            help=f"{field.metadata['help']} [{environment_name(field.name)}]",
            metavar=field.metadata["metavar"],
            rich_help_panel=f"{field.metadata['group']} options",
            show_default=False,
        )
        kind: Any = list[str] | None if field.type.startswith("tuple") else str | None
        options[field.name] = Annotated[kind, option]
    config = typer.Option(
        "--config", metavar="PATH", help="TOML file with options. [EDGEKV_CONFIG]", show_default=False
    )
    debug = typer.Option("--debug", help="Show the traceback of an internal error.", show_default=False)
    options["config"] = Annotated[Path | None, config]
    options["debug"] = Annotated[bool | None, debug]
    for name in REFUSED:
        options[name] = Annotated[str | None, typer.Option("--" + name.replace("_", "-"), hidden=True)]
    return options
