"""All keys of the chat, from the tables in the screens and widgets, for the help page and for chat.toml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.binding import Binding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from textual.dom import DOMNode

_NAMES = {
    "pageup": "Page up",
    "pagedown": "Page down",
    "escape": "Esc",
    "enter": "Enter",
    "up": "↑",
    "down": "↓",
}


def key(  # noqa: D417  the others are Textual's
    name: str, keys: str, action: str, short: str, does: str, *, first: bool = False
) -> Binding:
    """One key that may be changed.

    Args:
        name: what chat.toml calls it.
        short: its word in the bottom line; empty where it is not shown there.
        does: what the help page says.
        first: before the widget that has the focus sees it.
    """
    return Binding(keys, action, short or does, show=bool(short), priority=first, id=name, tooltip=does)


def bindings_of(*owners: type[DOMNode]) -> list[Binding]:
    """The keys of `owners` that have a name and so may be changed."""
    found = [b for owner in owners for b in owner.BINDINGS if isinstance(b, Binding)]
    return [binding for binding in found if binding.id is not None]


def key_rows(groups: Mapping[str, type[DOMNode]], changed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Rows for the help page: keys and what they do, in `groups` by heading; `changed` keys by their name."""
    for heading, owner in groups.items():
        yield heading, ""
        for binding in bindings_of(owner):
            keys = changed.get(binding.id or "", binding.key)
            yield (
                " ".join(map(_readable, keys.split(","))),
                f"{binding.tooltip} [{binding.id}]",
            )


def _readable(key: str) -> str:
    *modifiers, last = key.split("+")
    return "+".join([*(modifier.capitalize() for modifier in modifiers), _NAMES.get(last, last.capitalize())])
