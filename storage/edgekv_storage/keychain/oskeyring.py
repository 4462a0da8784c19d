"""The operating system's keyring, if there is one that keeps secrets, and never longer than a person waits.

The `keyring` package is imported when it is needed and not before: it reads configuration and talks to
D-Bus. Every call runs in a thread of its own with a time limit, because a missing or locked service can
hang for ever.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from edgekv_storage.errors import KeyUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "edgekv"
LIMIT_S = 30.0  # long enough to type a password into the desktop's question
PROBE_LIMIT_S = 5.0
T = TypeVar("T")
_LEAST_PRIORITY = 1  # keyring's own line between real services and files of plain text


def unusable() -> str | None:
    """Why the keyring cannot be used, None when it can."""
    try:
        return _limited(_unusable, PROBE_LIMIT_S)
    except KeyUnavailable as error:
        return str(error)


def describe() -> str:
    """The keyring's name, for people."""
    return _limited(lambda: str(_backend().name), PROBE_LIMIT_S)


def put(account: str, secret: str) -> None:
    """Stores and reads back. Raises KeyUnavailable."""

    def work() -> bool:
        backend = _backend()
        backend.set_password(SERVICE, account, secret)
        return bool(backend.get_password(SERVICE, account) == secret)

    if not _limited(work, LIMIT_S):
        raise KeyUnavailable("the keyring did not keep the key; choose --key-protection passphrase or file")


def get(account: str) -> str | None:
    """The stored secret, None where there is none. Raises KeyUnavailable."""
    found = _limited(lambda: _backend().get_password(SERVICE, account), LIMIT_S)
    return None if found is None else str(found)


def remove(account: str) -> None:
    """Harmless where there is none. Raises KeyUnavailable."""

    def work() -> None:
        backend = _backend()
        if backend.get_password(SERVICE, account) is not None:
            backend.delete_password(SERVICE, account)

    _limited(work, LIMIT_S)


def _backend() -> Any:
    import keyring  # noqa: PLC0415  only where a keyring is used

    return keyring.get_keyring()


def _unusable() -> str | None:
    backend = _backend()
    module = type(backend).__module__
    if module.startswith(("keyring.backends.fail", "keyring.backends.null")):
        return "none is running for this user"
    parts = getattr(backend, "backends", None)  # the chainer tries several in turn
    priority = backend.priority if parts is None else max((part.priority for part in parts), default=0)
    return None if priority >= _LEAST_PRIORITY else f"{backend.name} does not protect what it keeps"


def _limited(work: Callable[[], T], limit_s: float) -> T:
    """`work()` in a thread that may be left behind. Raises KeyUnavailable, never what the backend raised."""
    answers: queue.Queue[tuple[T | None, str | None]] = queue.Queue(1)

    def run() -> None:
        try:
            answers.put((work(), None))
        except Exception as error:  # noqa: BLE001  backends raise what they like; its text may hold secrets
            answers.put((None, type(error).__name__))

    threading.Thread(target=run, name="edgekv-keyring", daemon=True).start()
    try:
        value, failure = answers.get(timeout=limit_s)
    except queue.Empty:
        raise KeyUnavailable(
            f"the keyring did not answer within {limit_s:.0f} s: unlock it and try again"
        ) from None
    if failure is not None:
        raise KeyUnavailable(f"the keyring refused ({failure}): unlock it and try again")
    return value  # type: ignore[return-value]  # a failure was raised above
