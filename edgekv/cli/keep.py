"""Commands about what is kept: backup, restore, export and import."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekv.cli.options import Given, with_options
from edgekv.cli.output import format_bytes, printable, write_json
from edgekv.cli.passphrase import asker
from edgekv.conversation import kept
from edgekv.conversation.exchange import export_lines, export_markdown, import_lines
from edgekv.conversation.foreign import is_foreign, read_foreign
from edgekv.conversation.unlock import Unlock
from edgekv.errors import ConfigError, ConversationError, StoreError, TemplateError
from edgekv.runtime import Runtime

if TYPE_CHECKING:
    from edgekv.config import Config

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")]
ADVICE = {
    "keyring": "its key is in this computer's keyring: elsewhere it needs the recovery code (`edgekv key export`)",
    "passphrase": "it opens with the passphrase",
    "file": "it holds its key file: keep it where only you can read it",
    None: "it is not encrypted: keep it where only you can read it",
}


@with_options
def backup(
    given: Given,
    target: Annotated[Path, typer.Argument(metavar="DEST", help="A new or empty folder.")],
    kv: Annotated[bool, typer.Option("--kv", help="Copy the KV too (nothing may be running).")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy conversations and their keys into a folder; they may be in use. KV can be computed again."""
    copied = kept.back_up(given.config().data_dir, target, with_kv=kv)
    notices = [*copied.notices, ADVICE[copied.protection]]
    if as_json:
        write_json({"backup": str(target), "bytes": copied.num_bytes, "notices": notices})
        return
    sys.stderr.write(f"backed up {format_bytes(copied.num_bytes)} to {target}\n")
    for notice in notices:
        sys.stderr.write(f"edgekv: {notice}\n")


@with_options
def restore(
    given: Given,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder made by `edgekv backup`.")],
    as_json: AsJson = False,
) -> None:
    """Put a backup into an empty --data-dir. Nothing is ever overwritten."""
    data_dir = given.config().data_dir
    copied = kept.restore(source, data_dir)
    if as_json:
        write_json({"restored": str(data_dir), "bytes": copied.num_bytes})
        return
    then = "" if copied.protection != "keyring" else "; on another computer: `edgekv key recover`"
    sys.stderr.write(f"restored {format_bytes(copied.num_bytes)} to {data_dir}{then}\n")


@with_options
def export(
    given: Given,
    name: Annotated[str, typer.Argument(help="The conversation.")],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="For reading; the current branch only.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH", help="A new file, 0600.")] = None,
) -> None:
    """Write a conversation as JSON lines that `edgekv import` reads back. They are not encrypted."""
    config = given.config()
    kept.require_kept(config.data_dir, name, unlock := Unlock.of(config, asker()))
    with kept.opened(config.data_dir, unlock) as library:
        lines = list((export_markdown if markdown else export_lines)(library, name))
    if out is None:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        return
    from edgekv.conversation.linefile import write_lines  # noqa: PLC0415  aiofiles comes with it

    asyncio.run(write_lines(out, lines))


@with_options
def import_(
    given: Given,
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="What `edgekv export` wrote (- is stdin), or ChatGPT's or llm's."
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Another name than the file's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep what was exported: by edgekv, by ChatGPT, or in llm's logs.db (these two load the model)."""
    config = given.config()
    if source != "-" and is_foreign(Path(source)):
        _import_foreign(config, Path(source), name, as_json=as_json)
        return
    lines = _read(source)
    with kept.opened(config.data_dir, Unlock.of(config, asker()), is_writable=True) as library:
        name = import_lines(library, lines, name)
        for notice in library.keys.notices if library.keys is not None else ():
            sys.stderr.write(f"edgekv: {notice}\n")
    if as_json:
        write_json({"imported": name})
    else:
        sys.stderr.write(f"imported: {name}\n")


def _import_foreign(config: Config, path: Path, name: str | None, *, as_json: bool) -> None:
    """All that can be; their words become the tokens of the model."""
    chats = read_foreign(path)
    if name is not None and len(chats) > 1:
        raise ConfigError(f"--name is for one conversation; {path} has {len(chats):,}")
    imported, notices = list[str](), list[str]()
    with Runtime(config=config, passphrase=asker()) as runtime:
        if runtime.degraded is not None:
            raise StoreError(f"nothing would be kept: {runtime.degraded}")
        for chat in chats:
            try:
                imported.append(runtime.import_foreign(chat, name))
            except (ConversationError, TemplateError) as error:  # of this one only
                notices.append(str(error))
            else:
                notices += [f"{imported[-1]}: {chat.notice}"] if chat.notice else []
    if as_json:
        write_json({"imported": imported, "notices": notices})
    else:
        sys.stderr.write("".join(f"edgekv: {printable(notice)}\n" for notice in notices))
        sys.stderr.write("".join(f"imported: {one}\n" for one in imported))
    if not imported:
        raise typer.Exit(1)


def _read(source: str) -> list[str]:
    from edgekv.conversation.linefile import read_lines  # noqa: PLC0415  aiofiles comes with it

    try:
        lines = sys.stdin.read().split("\n") if source == "-" else asyncio.run(read_lines(source))
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {source}: {error}") from error
    except ConversationError as error:  # a name that was typed wrongly
        raise ConfigError(str(error)) from error
    if source == "-" and lines[0].startswith("["):
        raise ConfigError("exports of other programs are imported from a file, not from stdin")
    return lines


def add_to(app: typer.Typer) -> None:
    """Make these commands of `app`."""
    for command, name in ((backup, "backup"), (restore, "restore"), (export, "export"), (import_, "import")):
        app.command(name)(command)
