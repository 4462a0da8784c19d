"""Every option, once: the table below is the Python API, the command line, the environment and the TOML file.

Knows option names, types, defaults and their order of precedence: option, then `EDGEKV_*`, then the TOML
file, then the default. Knows nothing of machines: what `auto` turns out to be is found at run time and kept
elsewhere. Unknown names raise; a misspelt option never does nothing.
"""
# ruff: noqa: RUF009  (the table's rows are calls that only build dataclass fields)

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_type_hints

import msgspec
import platformdirs

from edgekv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ENV_PREFIX = "EDGEKV_"
Selection = Literal["cascade", "leoam", "quest", "heavy", "sentence", "window", "oracle"]
PASSPHRASE_VARIABLE = "EDGEKV_PASSPHRASE"  # noqa: S105  a name
NEW_PASSPHRASE_VARIABLE = "EDGEKV_NEW_PASSPHRASE"  # noqa: S105  for `edgekv key rotate`
"""Secrets and so no options: they are in no table, no TOML file, on no command line and in no repr."""
TOML_NAME = "edgekv.toml"
GIB = 1024**3

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", re.IGNORECASE)
_SIZE_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

Count = Annotated[int, msgspec.Meta(ge=1)]
Size = Annotated[int, msgspec.Meta(ge=0)]


def _option(default: Any, text: str, metavar: str, *, group: str = "Runtime") -> Any:
    """A row of the table. `text` is the user manual; `metavar` what a value looks like."""
    return dataclasses.field(default=default, metadata={"help": text, "metavar": metavar, "group": group})


def _answer(default: Any, text: str, metavar: str) -> Any:
    return _option(default, text, metavar, group="Answer")


def default_data_dir() -> Path:
    """Where conversations are kept unless told otherwise (nothing is created)."""
    return Path(platformdirs.user_data_dir("edgekv", appauthor=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All options, checked. Sizes are bytes; None stands for a choice made at run time."""

    model: str | None = _option(
        None, "GGUF file, or a name that `edgekv models` lists. Default: the bundled model.", "PATH|NAME"
    )
    data_dir: Path = dataclasses.field(
        default_factory=default_data_dir,
        metadata={
            "help": "Folder that holds conversations, their KV and the log.",
            "metavar": "DIR",
            "group": "Runtime",
        },
    )
    device: Literal["auto", "cpu", "cuda"] = _option(
        "auto", "Where the model runs: auto, cpu or cuda.", "auto|cpu|cuda"
    )
    device_budget: Size | None = _option(
        None,
        "Limit of the KV kept on the device. Default: half of its free memory (CPU: 1 GiB).",
        "SIZE",
    )
    host_budget: Size = _option(2 * GIB, "Limit of the KV kept in ordinary memory (2 GiB).", "SIZE")
    disk_budget: Size = _option(20 * GIB, "Limit of the KV kept on disk (20 GiB).", "SIZE")
    attention: Literal["auto", "exact", "selected"] = _option(
        "auto",
        "exact: every token reads the whole conversation; selected: only what matters of it, --budget tokens; "
        "auto: exact while it fits the device limit and the model's trained window, selected beyond.",
        "auto|exact|selected",
    )
    budget: Annotated[int, msgspec.Meta(ge=128)] = _option(
        1024, "Tokens that selected attention reads per layer and step (1024).", "TOKENS"
    )
    prefill_budget: Annotated[int, msgspec.Meta(ge=128)] = _option(
        3072,
        "Tokens of the past that a block of new ones reads per layer under selected attention (3072); a prompt's "
        "last 64 read --budget.",
        "TOKENS",
    )
    window: Annotated[int, msgspec.Meta(ge=64)] | None = _option(
        None,
        "How many of the budget's tokens are the latest ones. Default: an eighth of --budget, a quarter beyond "
        "the trained window; two thirds of --prefill-budget.",
        "TOKENS",
    )
    selection: Selection = _option(
        "cascade", "How selected attention chooses what to read; see docs/selection.md (cascade).", "METHOD"
    )
    weights: Literal["auto", "compact", "fast"] = _option(
        "auto",
        "compact: weights stay quantized in memory; fast: 16-bit copies speed up prefill; "
        "auto: by free memory.",
        "auto|compact|fast",
    )
    threads: Count | None = _option(None, "CPU threads. Default: one for each physical core.", "N")
    io: Literal["auto", "uring", "pread", "buffered"] = _option(
        "auto",
        "How KV is read from disk: uring (io_uring), pread (threads), buffered (page cache), or auto.",
        "auto|uring|pread|buffered",
    )
    encryption: Literal["on", "off"] = _option(
        "on", "Whether what is kept on disk is encrypted; fixed when the data folder is made (on).", "on|off"
    )
    key_protection: Literal["auto", "keyring", "passphrase", "file"] = _option(
        "auto",
        "What protects the keys of a new data folder: the desktop's keyring, a passphrase (prompt or "
        "EDGEKV_PASSPHRASE) or a key file; auto takes the first there is.",
        "auto|keyring|passphrase|file",
    )
    key_file: Path | None = _option(
        None, "Where the key file lies, if the keys are protected by one. Default: beside the data.", "PATH"
    )
    queue_size: Count = _option(8, "Requests that may wait before new ones are refused as busy (8).", "N")
    keep_alive: Annotated[float, msgspec.Meta(gt=0)] | None = _option(
        None,
        "Seconds without work after which the model is unloaded until the next message. Default: never.",
        "S",
    )
    system: str | None = _answer(
        None, "System prompt of a new conversation. Default: the template's.", "TEXT"
    )
    max_tokens: Count = _answer(512, "Longest answer, in tokens (512).", "N")
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = _answer(
        0.7, "0 takes the likeliest token; larger is more varied (0.7).", "X"
    )
    top_k: Size = _answer(0, "Draw only from the K likeliest tokens; 0 is off.", "K")
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = _answer(
        1.0, "Draw only from the likeliest tokens that together reach P; 1 is off.", "P"
    )
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = _answer(
        0.0, "Drop tokens less likely than P times the likeliest; 0 is off.", "P"
    )
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] = _answer(
        1.0, "Above 1 makes tokens that already occurred less likely; 1 is off.", "X"
    )
    seed: int | None = _answer(None, "Makes the draw repeatable. Default: a new one each time.", "N")
    stop: tuple[str, ...] = _answer((), "Text that ends the answer; may be given several times.", "TEXT")
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = _answer(
        None, "Seconds after which an answer is cancelled; what is there is kept. Default: none.", "S"
    )

    def replace(self, options: Mapping[str, object], *, only: Iterable[str] | None = None) -> Config:
        """A copy with `options` set, checked like any others; `only` restricts which may be given."""
        allowed = tuple(only) if only is not None else FIELDS
        values = {
            name: _convert(name, value, f"option {name}")
            for name, value in options.items()
            if _known(name, allowed, "option")
        }
        return dataclasses.replace(self, **values)


class Options(TypedDict, total=False):
    """The keyword arguments of `Runtime`: the fields of `Config`, with the spellings it understands."""

    model: str | os.PathLike[str] | None
    data_dir: str | os.PathLike[str]
    device: Literal["auto", "cpu", "cuda"]
    device_budget: int | str | None
    host_budget: int | str
    disk_budget: int | str
    attention: Literal["auto", "exact", "selected"]
    budget: int | str
    prefill_budget: int | str
    window: int | None
    selection: Selection
    weights: Literal["auto", "compact", "fast"]
    threads: int | None
    io: Literal["auto", "uring", "pread", "buffered"]
    encryption: Literal["on", "off"]
    key_protection: Literal["auto", "keyring", "passphrase", "file"]
    key_file: str | os.PathLike[str] | None
    queue_size: int
    keep_alive: float | None
    system: str | None
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | tuple[str, ...] | list[str]
    timeout: float | None


class AnswerOptions(TypedDict, total=False):
    """What one `send`, `stream`, `edit` or `regenerate` may set for itself."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | tuple[str, ...] | list[str]
    timeout: float | None


FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Config))
ANSWER_FIELDS: tuple[str, ...] = tuple(AnswerOptions.__annotations__)
_TYPES = get_type_hints(Config, include_extras=True)
_METAVARS = {field.name: field.metadata["metavar"] for field in dataclasses.fields(Config)}


def load_config(
    options: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config_path: Path | None = None,
) -> Config:
    """Merge option > environment > TOML > default into a checked Config.

    `options` holds what was really given (None values included: they mean the run-time choice); text is
    understood like an environment variable's. Raises ConfigError naming the place and the name at fault.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, object] = {}
    for name, value in (options or {}).items():
        _known(name, FIELDS, "option")
        given[name] = _convert(name, value, f"option {name}")
    from_environ, environ_path = _from_environ(environ)
    explicit = config_path or environ_path
    data_dir = given.get("data_dir", from_environ.get("data_dir", default_data_dir()))
    assert isinstance(data_dir, Path)
    path = explicit or _find_toml(data_dir)
    from_toml = _from_toml(path) if path is not None else {}
    values: dict[str, Any] = {**from_toml, **from_environ, **given}
    return Config(**values)


def parse_bytes(text: str) -> int:
    """Bytes of "2GiB", "512MB", "1.5 G" or "1048576". KB, MB are powers of 1000; K, KiB, MiB of 1024."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("write a size like 2GiB, 512MB or a number of bytes")
    number, unit, binary = match.groups()
    decimal = not binary and unit and text.strip().upper().endswith("B")
    return int(float(number) * (1000 if decimal else 1024) ** _SIZE_POWER[unit.upper()])


def _find_toml(data_dir: Path) -> Path | None:
    """The first that exists: beside the data, then the user's configuration folder."""
    folders = (data_dir, Path(platformdirs.user_config_dir("edgekv", appauthor=False)))
    return next((folder / TOML_NAME for folder in folders if (folder / TOML_NAME).is_file()), None)


def _from_toml(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if "passphrase" in table:
        raise ConfigError(
            f"a passphrase does not belong into {path}: take it out; {PASSPHRASE_VARIABLE} or a prompt gives it"
        )
    return {
        name: _convert(name, value, f"{name} in {path}")
        for name, value in table.items()
        if _known(name, FIELDS, f"entry in {path}")
    }


def _from_environ(environ: Mapping[str, str]) -> tuple[dict[str, object], Path | None]:
    """Options set by `EDGEKV_*`, and the TOML file that `EDGEKV_CONFIG` names."""
    values: dict[str, object] = {}
    path: Path | None = None
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in (PASSPHRASE_VARIABLE, NEW_PASSPHRASE_VARIABLE):
            continue
        if variable == f"{ENV_PREFIX}CONFIG":
            path = Path(text).expanduser()
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in FIELDS or variable != environment_name(name):
            known = [environment_name(field) for field in FIELDS]
            raise ConfigError(f"unknown environment variable {variable}{_did_you_mean(variable, known)}")
        value = _texts(text) if name == "stop" else text
        values[name] = _convert(name, value, f"environment variable {variable}")
    return values, path


def _texts(text: str) -> list[str]:
    """A variable holds one text, or several as a JSON list; "[END]" is no such list and stands for itself."""
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError:
        return [text]


def environment_name(name: str) -> str:
    """The environment variable that sets option `name`."""
    return ENV_PREFIX + name.upper()


def _known(name: str, allowed: Iterable[str], what: str) -> bool:
    allowed = tuple(allowed)
    if name not in allowed:
        raise ConfigError(f"unknown {what}: {name}{_did_you_mean(name, allowed)}")
    return True


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _convert(name: str, value: object, place: str) -> Any:
    """`value` as the type of field `name`; numbers and sizes may be text."""
    try:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if name in ("data_dir", "key_file") and isinstance(value, str):
            return Path(value).expanduser()
        if name == "stop" and isinstance(value, str):
            value = [value]
        if name.endswith("_budget") and isinstance(value, str):
            value = parse_bytes(value)
        is_text = isinstance(value, str)
        return msgspec.convert(value, _TYPES[name], strict=not is_text)
    except (ValueError, OverflowError) as error:  # msgspec's errors are ValueErrors
        metavar = _METAVARS[name]
        expected = f" (expects {metavar})" if len(metavar) > 1 else ""  # X and N say nothing
        raise ConfigError(f"{place} is {value!r}: {_reason(error)}{expected}", name) from error


def _reason(error: Exception) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]
