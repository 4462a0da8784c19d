"""Writing in one's own editor. Knows $VISUAL, $EDITOR and a file that lies in memory only.

The text goes through a file, since editors know nothing else. It lies in a folder of its own (for the editor's
swap and backup files) in the user's runtime folder or /dev/shm, which are memory, and is gone afterwards.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from edgekv import Unsupported


def edit(text: str) -> str:
    """`text` as it was left in the editor. Raises Unsupported where there is no editor or no such folder."""
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="edgekv-", dir=_folder_in_memory()) as folder:
        path = Path(folder, "message.md")
        path.touch(mode=0o600)
        path.write_text(text, "utf-8")
        try:
            done = subprocess.run([*command, str(path)], check=False)  # noqa: S603  the person's own editor
        except OSError as error:
            raise Unsupported(
                f"the editor {command[0]} does not start ({error.strerror}): set VISUAL or EDITOR to another"
            ) from error
        if done.returncode != 0:
            raise Unsupported(f"{command[0]} ended with code {done.returncode}: the message is as it was")
        return path.read_text("utf-8", "replace").rstrip("\n")


def _folder_in_memory() -> str:
    for folder in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):  # noqa: S108  memory, and a folder of its own
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise Unsupported(
        "there is no folder in memory (XDG_RUNTIME_DIR): an editor would write the message to disk"
    )
