"""Writing in one's own editor. Knows $VISUAL, $EDITOR and a file that lies in memory only.

The text goes through a file, since editors know nothing else. It lies in a folder of its own on a file system in
memory, and is gone afterwards. Editors may keep more elsewhere (swap, undo, registers, backups): Vim and Neovim
are told not to, of others nothing is known. So nothing private is to be written in one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgekv import Unsupported

VIM_KEEPS_NOTHING = ("-n", "-i", "NONE", "-c", "silent! set noundofile nobackup nowritebackup")
MOUNTS = Path("/proc/self/mounts")
IN_MEMORY = {"tmpfs", "ramfs"}


def edit(text: str) -> str:
    """`text` as it was left in the editor. Raises Unsupported where there is no editor or no such folder."""
    command = editor_command()
    with tempfile.TemporaryDirectory(prefix="edgekv-", dir=_folder_in_memory()) as folder:
        path = Path(folder, "message.md")
        path.touch(mode=0o600)
        path.write_text(text, "utf-8")
        try:
            done = subprocess.run([*command, str(path)], check=False)  # noqa: S603  the person's own editor
            text = path.read_text("utf-8", "replace")
        except OSError as error:
            raise Unsupported(
                f"the editor {command[0]} does not work ({error.strerror}): set VISUAL or EDITOR to another"
            ) from error
        if done.returncode != 0:
            raise Unsupported(f"{command[0]} ended with code {done.returncode}: the message is as it was")
        return text.rstrip("\n")


def editor_command() -> list[str]:
    """The editor that is set, `vi` where none is. Raises Unsupported for a command line that is none."""
    given = next((v for v in map(os.environ.get, ("VISUAL", "EDITOR")) if v and v.strip()), "vi")
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise Unsupported(f"VISUAL or EDITOR is no command ({error}): correct {given!r}") from error
    found = (
        Path(shutil.which(command[0]) or command[0]).resolve().name
    )  # `vi` is often Vim, and BusyBox at times
    return [*command, *VIM_KEEPS_NOTHING] if found.startswith(("vim", "nvim", "gvim")) else command


def _folder_in_memory() -> str:
    for folder in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):  # noqa: S108  memory, and a folder of its own
        if folder and os.access(folder, os.W_OK | os.X_OK) and _is_in_memory(Path(folder)):
            return folder
    raise Unsupported("there is no folder in memory (/dev/shm): an editor would write the message to disk")


def _is_in_memory(folder: Path) -> bool:
    """Whether the innermost mount around `folder` is a file system in memory; where nothing tells, it is not."""
    try:
        rows = [line.split(" ") for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return False
    kinds = {row[1].replace("\\040", " "): row[2] for row in rows}
    where = folder.resolve()
    return next((kinds[str(at)] for at in (where, *where.parents) if str(at) in kinds), "") in IN_MEMORY
