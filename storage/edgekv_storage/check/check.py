"""`edgekv check`: a whole data directory, file by file, record by record, row by row; and what can be mended.

Puts the readers of segmentfile.py and texts.py together. Looking changes nothing and needs no lock.
Mending never touches a transcript: it rebuilds the index, seals what a crash left open and moves segments
with damage to quarantine/, whose KV is computed again.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from edgekv_storage.check.segmentfile import SegmentFound, check_segment_bytes
from edgekv_storage.check.texts import (
    ConversationFound,
    check_database,
    check_index,
    check_meta,
    check_transcripts,
)
from edgekv_storage.datadir import DataDir
from edgekv_storage.errors import KeyUnavailable, StorageError
from edgekv_storage.files import SegmentFile
from edgekv_storage.io.disk import OS_DISK
from edgekv_storage.segments.format import LEAF_TOKENS
from edgekv_storage.segments.quarantine import Quarantine
from edgekv_storage.space.losses import DAMAGE, Loss
from edgekv_storage.store.index import known_dead, known_losses
from edgekv_storage.store.transfer import LeafPlace
from edgekv_storage.transcripts.transcripts import Transcripts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekv_storage.crypt import Keys
    from edgekv_storage.io.disk import Disk

    Progress = Callable[[int, int], None]  # bytes checked, bytes in all

_DATABASES = ("transcripts.db", "keys.db", "index.db")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a file that is not as it was written."""

    file: str
    offset: int
    reason: str


@dataclass(slots=True)
class Checked:
    """What a look at a data directory found. `names`: of conversations, by sequence id in hex."""

    directory: str
    segments: list[SegmentFound] = field(default_factory=list)
    conversations: list[ConversationFound] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # no problem, and worth knowing
    names: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """For JSON; docs/reliability.md describes it."""
        return {
            "directory": self.directory,
            "is_clean": not self.problems,
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
            "conversations": [{**asdict(c), "sequence_id": c.sequence_id.hex()} for c in self.conversations],
            "segments": [self._segment(segment) for segment in self.segments],
        }

    def _segment(self, segment: SegmentFound) -> dict[str, object]:
        sequence_id = segment.sequence_id.hex()
        rows = [asdict(record) for record in segment.records]
        shown = {k: v for k, v in asdict(segment).items() if k not in ("problems", "notes", "records")}
        return {
            **shown,
            "sequence_id": sequence_id,
            "conversation": self.names.get(sequence_id),
            "records": rows,
        }


def check_segment(
    path: Path, *, end: int | None = None, disk: Disk = OS_DISK, keys: Keys | None = None
) -> list[Problem]:
    """Problems of one segment, its sections' too; `end` is where an unsealed one should end (None: anywhere)."""
    try:
        found = _read_segment(path, disk, keys)
    except OSError as error:
        return [Problem(path.name, 0, f"cannot be read: {error.strerror}")]
    problems = [Problem(path.name, at, reason) for at, reason in (*found.problems, *found.notes)]
    if end is not None and found.end < end and found.state not in ("foreign", "newer", "unreadable"):
        problems.append(Problem(path.name, found.end, f"records end {end - found.end} bytes early"))
    return problems


def _read_segment(path: Path, disk: Disk, keys: Keys | None) -> SegmentFound:
    file = SegmentFile(path, use_direct=False, disk=disk)

    def find_key(sequence_id: bytes) -> tuple[bytes, bytes] | None:
        try:
            key = keys.find(sequence_id) if keys is not None else None
        except StorageError:  # keys.db is damaged, which is said once and not for each segment
            key = None
        return None if key is None else (key.secret, key.key_id)

    return check_segment_bytes(path.name, file.num_bytes, file.read, find_key)


def check_directory(
    directory: DataDir, keys: Keys | None, progress: Progress = lambda _done, _all: None
) -> Checked:
    """Looks at everything in a data directory. Raises StorageError where it cannot be looked at."""
    path = directory.path
    checked = Checked(str(path))
    _check_texts(directory, keys, checked)
    names = sorted(p.name for p in path.iterdir() if p.name.startswith("seg-") and p.name.endswith(".kv"))
    known = known_dead(path)
    total, done = sum(os.lstat(path / name).st_size for name in names), 0
    for name in names:
        _check_one(path / name, keys, checked, known)
        with contextlib.suppress(OSError):
            done += os.lstat(path / name).st_size
        progress(done, total)
    problems = check_index(path / "index.db", checked.segments)
    checked.problems += [Problem("index.db", 0, reason) for reason in problems]
    _note_the_rest(path, checked)
    return checked


def _check_texts(directory: DataDir, keys: Keys | None, checked: Checked) -> None:
    path = directory.path
    checked.problems += [Problem("meta.json", 0, reason) for reason in check_meta(path)]
    for name in _DATABASES:
        checked.problems += [Problem(name, 0, reason) for reason in check_database(path / name)]
    if not (path / "transcripts.db").exists():
        return
    try:
        with Transcripts.open(directory, keys) as transcripts:
            checked.conversations, notices = check_transcripts(transcripts)
    except StorageError as error:
        if isinstance(error, KeyUnavailable) and not os.path.lexists(path / "keys.db"):
            reason = "it is missing, and the conversations are sealed with its keys: restore it from a backup"
            checked.problems.append(Problem("keys.db", 0, reason))
        else:
            checked.problems.append(Problem("transcripts.db", 0, str(error)))
        return
    checked.problems += [Problem("transcripts.db", 0, reason) for reason in notices]
    for found in checked.conversations:
        if found.name is not None:
            checked.names[found.sequence_id.hex()] = found.name
        if found.state != "good":
            title = f"conversation {found.name!r}" if found.name is not None else f"conversation {found.id}"
            checked.problems.append(Problem("transcripts.db", 0, f"{title}: {found.reason}"))


def _check_one(path: Path, keys: Keys | None, checked: Checked, known: set[LeafPlace]) -> None:
    """`known`: leaves whose damage was noted before."""
    try:
        found = _read_segment(path, OS_DISK, keys)
    except OSError as error:
        checked.problems.append(Problem(path.name, 0, f"cannot be read: {error.strerror}"))
        return
    if keys is not None and not found.is_encrypted and found.state in ("good", "unsealed", "damaged"):
        found.fail("damaged", "it is not encrypted, so anybody could have made it")
    if found.state == "damaged" and _is_known(found, known):
        checked.notes.append(f"{path.name} has damaged leaves; they are known and not found again")
    else:
        checked.problems += [Problem(path.name, at, reason) for at, reason in found.problems]
    checked.segments.append(found)
    checked.notes += [f"{path.name} at {at}: {reason}; its leaves are good" for at, reason in found.notes]
    if found.state == "unsealed":
        checked.notes.append(f"{path.name} is not sealed: {found.reason}; the next start seals it")


def _note_the_rest(path: Path, checked: Checked) -> None:
    owner = DataDir.owner(path)
    if owner is not None and owner != os.getpid():
        checked.notes.append(f"process {owner} is using it: what it is writing may show as cut short")
    try:
        count = len(Quarantine(OS_DISK, path).items())
    except OSError as error:
        checked.notes.append(f"quarantine/ cannot be listed: {error.strerror}")
        return
    if count:
        checked.notes.append(f"{count} damaged file(s) lie in quarantine/; the next forget removes them")


def damaged_places(segment: SegmentFound) -> list[LeafPlace]:
    """Leaves of which some layer is damaged, and all those of records that cannot be read."""
    number = int(segment.file[4:20], 16)
    found = {(record.number, leaf) for record in segment.records for _, leaf in record.damaged_leaves}
    for record in segment.records:
        if record.state == "damaged":
            found |= {(record.number, leaf) for leaf in range(record.num_leaves)}
    return [LeafPlace(number, record, leaf) for record, leaf in sorted(found)]


def _lost(segment: SegmentFound, known: set[LeafPlace], *, whole: bool) -> list[Loss]:
    """What is lost of it, all or the damaged leaves, but for leaves whose loss was counted before."""
    sizes = [(record.num_bytes, record.num_leaves) for record in segment.records if record.num_leaves]
    num_leaves = sum(count for _, count in sizes)
    number = int(segment.file[4:20], 16)
    counted = sum(place.segment == number for place in known)
    lost = num_leaves - counted if whole else len(set(damaged_places(segment)) - known)
    if lost <= 0:
        return []
    size = sum(num_bytes for num_bytes, _ in sizes) // num_leaves
    return [Loss(segment.sequence_id, DAMAGE, LEAF_TOKENS * lost, size * lost, 0)]


def _is_hopeless(segment: SegmentFound, keys: Keys | None) -> bool:
    """Whether nothing of it can be read, or believed. What else is damaged costs its own leaves only.

    A torn end is cut off by the next start.
    """
    if segment.state != "damaged":
        return segment.state == "unreadable" and keys is not None
    states = [record.state for record in segment.records]
    is_foreign = keys is not None and not segment.is_encrypted
    return is_foreign or not ("good" in states or "damaged leaves" in states)


def _is_known(segment: SegmentFound, known: set[LeafPlace]) -> bool:
    """Whether all that is wrong with it was noted before."""
    bad = [record for record in segment.records if record.state == "damaged"]
    is_told = segment.is_sealed and all(record.num_leaves for record in bad)
    num_problems = sum(len(record.damaged_leaves) for record in segment.records) + len(bad)
    is_all = num_problems == len(segment.problems) and (is_told or not bad)
    return is_all and known >= {*damaged_places(segment)}


def fix_directory(directory: DataDir, keys: Keys | None, checked: Checked) -> list[str]:
    """Mends what can be mended without touching a transcript; one line for each thing done.

    Needs the lock. Raises StorageError, OSError.
    """
    from edgekv_storage.store.store import Store  # noqa: PLC0415  the store uses this module

    directory.require_writable()
    path, done = directory.path, []
    losses = [loss for found in known_losses(path).values() for loss in found]
    known, dead = known_dead(path), list[LeafPlace]()
    for segment in checked.segments:
        if _is_hopeless(segment, keys):
            Quarantine(OS_DISK, path).take(path / segment.file)
            done.append(f"{segment.file} was moved to quarantine/; its leaves are computed again")
            losses += _lost(segment, known, whole=True)  # records were found: its header says whose it was
        elif places := damaged_places(segment):
            dead += places
            losses += _lost(segment, known, whole=False)
            done.append(f"{len(places)} damaged leaves of {segment.file} are not found again, but computed")
    for suffix in ("", "-wal", "-shm"):
        (path / f"index.db{suffix}").unlink(missing_ok=True)
    with Store.open(directory, None, quota_bytes=1 << 62, free_floor_bytes=0, keys=keys) as store:
        done += store.take_notices()
        store.note_damage(dead, losses)
        store.flush()
    done.append("the index was rebuilt from the segments")
    return done
