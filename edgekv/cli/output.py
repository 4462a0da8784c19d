"""How results reach a terminal, a pipe or a program reading JSON.

Knows streams and formats. With JSON, stdout gets exactly one object.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from edgekv.events import Result


def write_json(value: object) -> None:
    """One JSON object and a newline on stdout."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """`text` on one line, whatever could move a cursor or hide something shown as its code."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def result_object(result: Result) -> dict[str, object]:
    """What `run --json` prints of an answer."""
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": dataclasses.asdict(result.usage),
        "timings": dataclasses.asdict(result.timings),
        "exactness": result.exactness,
        "attention": dataclasses.asdict(result.attention),
        "cache": dataclasses.asdict(result.cache),
        "notices": list(result.notices),
    }


def format_bytes(count: int | None) -> str:
    """Bytes for people: 1.5 GiB."""
    if count is None:
        return "auto"
    value, units = float(count), iter(["B", "KiB", "MiB", "GiB"])
    unit = next(units)
    for larger in units:
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
