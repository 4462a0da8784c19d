"""Checks what lies beside the segments: transcripts, keys, index, meta.json. Changes nothing.

Knows the databases' tables by docs/format.md; rows of transcripts are opened by Transcripts, which alone has
the keys' protection in hand. SQLite's own integrity check looks at what no seal covers.
"""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv_storage.errors import StorageError
from edgekv_storage.files import read_private
from edgekv_storage.looking import look_at_whole

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv_storage.check.segmentfile import SegmentFound
    from edgekv_storage.transcripts.transcripts import Transcripts

_MOST_META_BYTES = 65536


@dataclass(slots=True)
class ConversationFound:
    """One conversation; `name` is None where it cannot be read. `state`: good, damaged turns or damaged."""

    id: int
    name: str | None
    sequence_id: bytes
    num_turns: int
    state: str = "good"
    reason: str = ""
    damaged_turns: list[int] = field(default_factory=list)


def check_meta(path: Path) -> list[str]:
    """What is wrong with meta.json."""
    try:
        meta = json.loads(read_private(path / "meta.json", _MOST_META_BYTES))
        if meta["format"] != 2:
            return [f"format {meta['format']}, this version reads 2"]
        return [] if isinstance(meta["uuid"], str) else ["it has no uuid"]
    except FileNotFoundError:
        return ["it is missing"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"it cannot be read ({type(error).__name__})"]


def check_database(path: Path) -> list[str]:
    """SQLite's own opinion of a file; nothing where there is no file."""
    if not os.path.lexists(path):
        return []
    try:
        answers = look_at_whole(
            path, lambda db: [str(row[0]) for row in db.execute("PRAGMA integrity_check(5)")]
        )
    except OSError as error:
        return [f"it cannot be opened: {error.strerror}"]
    except sqlite3.Error as error:
        return [" ".join(str(error).split())]
    return [] if answers == ["ok"] else [" ".join(answer.split()) for answer in answers]


def check_transcripts(transcripts: Transcripts) -> tuple[list[ConversationFound], list[str]]:
    """Every conversation with its turns; and what the file as a whole lacks. Raises StorageError."""
    found = []
    for row in transcripts.conversations():
        one = ConversationFound(row.id, row.name, row.sequence_id, row.num_turns)
        try:
            transcripts.turns(row.id)
        except StorageError as error:
            one.state, one.reason = "damaged turns", str(error)
            one.damaged_turns = transcripts.damaged_turns(row.id)
        found.append(one)
    for bad in transcripts.damaged_conversations():
        reason = "its own row does not match what was written, or its key is missing"
        one = ConversationFound(bad.id, None, bytes(bad.sequence_id), bad.num_turns, "damaged", reason)
        one.damaged_turns = transcripts.damaged_turns(bad.id)
        found.append(one)
    return found, list(transcripts.notices)


def check_index(path: Path, segments: list[SegmentFound]) -> list[str]:
    """Where index.db and the sealed segments disagree; nothing where there is no index."""
    if not os.path.lexists(path):
        return []
    try:
        names, rows = look_at_whole(
            path,
            lambda db: (
                dict(db.execute("SELECT name, bytes FROM segments")),
                db.execute("SELECT segment, number, offset, bytes FROM records").fetchall(),
            ),
        )
    except OSError:
        return []  # told by check_database
    except sqlite3.Error as error:
        return [" ".join(str(error).split())]
    sealed = {s.file: s for s in segments if s.is_sealed}
    known = {s.file for s in segments}
    wrong = [f"{name} is listed, and there is no such file" for name in names.keys() - known]
    wrong += [f"{name} is not listed" for name in sealed.keys() - names.keys()]
    wrong += [
        f"{n} has {sealed[n].num_bytes} bytes, not {names[n]}"
        for n in sealed.keys() & names.keys()
        if sealed[n].num_bytes != names[n]
    ]
    places = {
        int(s.file[4:20], 16): {(r.number, r.offset, r.num_bytes) for r in s.records} for s in sealed.values()
    }
    lost = sum(row[0] in places and row[1:] not in places[row[0]] for row in rows)
    return [*wrong, *([f"{lost} records are listed where there are none"] if lost else [])]
