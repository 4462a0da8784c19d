"""Text files that people give and take: exported conversations, read and written without holding up a loop.

Knows files of lines through aiofiles; not what is in them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import aiofiles

from edgekv.errors import ConversationError

if TYPE_CHECKING:
    from collections.abc import Iterable


async def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Into a new file, 0600. Raises ConversationError, also where there is one already; half a file never stays."""
    try:
        async with aiofiles.open(path, "x", encoding="utf-8", opener=_private) as file:
            try:
                await file.writelines(f"{line}\n" for line in lines)
                await file.flush()
            except BaseException:
                os.unlink(path)  # noqa: PTH108  it is not encrypted, and would be in the way of another try
                raise
    except OSError as error:
        raise ConversationError(f"cannot write {path}: {error.strerror}; choose a new file") from error


async def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """All of them. Raises ConversationError."""
    try:
        async with aiofiles.open(path, encoding="utf-8") as file:
            return [line async for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ConversationError(f"cannot read {path}: {error}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
