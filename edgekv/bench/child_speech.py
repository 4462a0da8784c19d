"""What a measuring process is told and what it answers. Knows fields; nothing of processes or of measuring."""

from __future__ import annotations

from typing import Any

import msgspec


class Task(msgspec.Struct, forbid_unknown_fields=True):
    """What to do: `load` the model, `store` ids in a fresh store, `talk` them in a fresh data directory
    (a conversation whose first message is the ids' text), or `steps` after ids under the limits.

    `steps` writes float32 logits `[len(forced), vocab]` to the file `logits`.
    """

    kind: str
    options: dict[str, Any]
    model: str
    store: str = ""
    ids: list[int] = []
    forced: list[int] = []
    logits: str = ""


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """What the child found; bytes, zero where unused. `error` is the line to show when it failed."""

    error: str = ""
    reused_tokens: int = 0
    context_tokens: int = 0
    device_peak_bytes: int = 0
    host_peak_bytes: int = 0
    disk_peak_bytes: int = 0
    process_peak_bytes: int = 0
    load_peak_bytes: int = 0
    weights_bytes: int = 0
