"""Every error a user, a disk or a device can cause, each saying what to do next.

Knows nothing of the rest of the package. A broken invariant of our own is an `assert`, not one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekv.events import Result


class EdgeKVError(Exception):
    """Parent of all errors edgekv raises on purpose; its text is one line fit to be shown to a person."""


class ConfigError(EdgeKVError):
    """An option, environment variable or TOML entry is unknown or has no sense. `option`: its name, where known."""

    def __init__(self, message: str = "", option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class ModelLoadError(EdgeKVError):
    """The model file is missing, damaged, hostile or of an unsupported kind."""


class TemplateError(EdgeKVError):
    """The model's chat template failed, took too long or grew too large."""


class ContextOverflow(EdgeKVError):
    """The conversation does not fit the trained window, and exact attention was asked for."""


class CapacityError(EdgeKVError):
    """A tier's limit leaves no room for what was asked; says which limit to raise."""


class OutOfMemory(EdgeKVError):
    """The machine itself, not a limit of edgekv's, has no memory left for what was asked."""


class PolicyError(EdgeKVError):
    """A method of selection failed or chose what cannot be read; says which, and nothing was read by it."""


class StoreError(EdgeKVError):
    """The data directory cannot be used: foreign, newer, damaged, read-only or gone."""


class ConversationError(EdgeKVError):
    """No such conversation or turn, or a name that cannot be used."""


class Unsupported(EdgeKVError):
    """Asked for something edgekv refuses on purpose (tools, images, adapters, JSON schema)."""


class Busy(EdgeKVError):
    """The bounded request queue is full, or the conversation is already generating."""


class Closed(EdgeKVError):
    """The Runtime was closed, or this process is a fork of the one that opened it."""


class Cancelled(EdgeKVError):
    """The caller cancelled; `partial` is what had been generated, already kept."""

    def __init__(self, partial: Result) -> None:
        super().__init__("cancelled; the partial answer was kept")
        self.partial = partial
