"""The API reference, made from the docstrings of what `edgekv` exports.

    python -m edgekv.reference > docs/api.md

Knows names, signatures and docstrings; decides nothing about what is public: `edgekv.__all__` does.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import TYPE_CHECKING

import edgekv

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """# API

Everything that `import edgekv` gives, made from its docstrings by `python -m edgekv.reference`: change those.
"""
_GROUPS = (
    ("Running a model", ("Runtime", "AsyncRuntime", "Archive", "Config", "Snapshot")),
    (
        "Talking",
        ("Conversation", "AsyncConversation", "Stream", "CancelToken", "Turn", "Branch", "ConversationInfo"),
    ),
)


def reference() -> str:
    """The whole document, Markdown."""
    parts = [_HEAD]
    done: set[str] = set()
    for title, names in _groups():
        parts.append(f"## {title}\n")
        for name in names:
            parts += _entry(name, getattr(edgekv, name))
            done.add(name)
    assert done == {name for name in edgekv.__all__ if not name.startswith("__")}, "every name once"
    return "\n".join(parts)


def _groups() -> Iterator[tuple[str, list[str]]]:
    """Titles and names; what no group names is an error or an event, by its kind."""
    left = [name for name in edgekv.__all__ if not name.startswith("__")]
    for title, names in _GROUPS:
        yield title, [name for name in names if name in left]
        left = [name for name in left if name not in names]
    errors = [name for name in left if _is_error(getattr(edgekv, name))]
    yield "Events, results and the rest", [name for name in left if name not in errors]
    yield "Errors", sorted(errors, key=lambda name: (name != "EdgeKVError", name))


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _entry(name: str, value: object) -> list[str]:
    if inspect.isfunction(value):
        return [f"### {name}\n", _code(name, inspect.signature(value)), _doc(value)]
    if not isinstance(value, type):
        return [f"### {name}\n", f"`{str(value).replace('edgekv.events.', '')}`\n"]
    base = "" if not _is_error(value) else f"({value.__mro__[1].__name__})"
    lines = [f"### {name}{base}\n", _doc(value)]
    lines += _fields(value) if dataclasses.is_dataclass(value) else _call(name, value)
    for member_name, member in vars(value).items():
        if not member_name.startswith("_") and (text := _member(member_name, member)) is not None:
            lines.append(text)
    return lines


def _call(name: str, value: type) -> list[str]:
    if "__init__" not in vars(value) or _is_error(value):
        return []
    return [_code(name, inspect.signature(value))]


def _fields(value: type) -> list[str]:
    """Fields with their types and, of the options, what they mean."""
    rows = []
    for field in dataclasses.fields(value):
        text = field.metadata.get("help", "")
        rows.append(f"- `{field.name}: {field.type}`" + (f" {text}" if text else ""))
    return ["\n".join(rows) + "\n"] if rows else []


def _member(name: str, member: object) -> str | None:
    if isinstance(member, property):
        return f"**`{name}`** (property)\n\n{_doc(member)}"
    function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    if not inspect.isfunction(function):
        return None
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[0 if isinstance(member, staticmethod) else 1 :]
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    return f"{_code(prefix + name, signature.replace(parameters=parameters))}\n{_doc(function)}"


def _code(name: str, signature: inspect.Signature) -> str:
    text = str(signature).replace("'", "")
    if len(name) + len(text) > 100:
        inside, _, result = text[1:].rpartition(") -> ") if ") -> " in text else (text[1:-1], "", "")
        text = "(\n    " + ",\n    ".join(_split(inside)) + ",\n)" + (f" -> {result}" if result else "")
    return f"```python\n{name}{text}\n```\n"


def _split(parameters: str) -> list[str]:
    """At commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(parameters):
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            parts.append(parameters[start:at].strip())
            start = at + 1
    return [*parts, parameters[start:].strip()]


def _doc(value: object) -> str:
    return (inspect.getdoc(value) or "") + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
