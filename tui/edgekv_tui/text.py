"""Text as a terminal may show it: what the model, a person or a file wrote never steers the terminal.

Knows characters and units only.
"""

from __future__ import annotations

import time

_KEPT = {"\n", "\t", "\u200c", "\u200d"}  # the last two join letters and emoji
_TITLE_CHARACTERS = 48


def shown(text: str) -> str:
    """`text` with every control character spelt out: escape sequences, bidirectional overrides, bells."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT else _spelt(c) for c in text.replace("\r\n", "\n"))


def _spelt(character: str) -> str:
    return " " if character.isspace() else repr(character)[1:-1]


def one_line(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(shown(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def title_of(text: str) -> str:
    """A conversation's name made of its first message."""
    line = one_line("".join(c if c.isprintable() else " " for c in text[:1000]), _TITLE_CHARACTERS)
    return line.strip() or "untitled"


def size(count: int | None) -> str:
    """Bytes for people: 1.5 GiB."""
    if count is None:
        return "auto"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def seconds(count: float) -> str:
    """A duration for people: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(count)
    if whole < 60:
        return f"{count:.1f} s" if count < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def when(at: float, now: float) -> str:
    """A time of the past, short: 14:02, Tue, 3 Mar, 2025."""
    then, today = time.localtime(at), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    if now - at < 6 * 86400:
        return time.strftime("%a", then)
    if then.tm_year == today.tm_year:
        return f"{then.tm_mday} {time.strftime('%b', then)}"
    return str(then.tm_year)


def bar(part: float, whole: float, width: int) -> str:
    """A bar of `width` cells that is `part` of `whole` full, to an eighth of a cell."""
    share = min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
    eighths = round(share * width * 8)
    if part > 0 and eighths == 0:
        eighths = 1
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)
