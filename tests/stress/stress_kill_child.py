"""What a process does until it is killed: everything a store and its transcripts can be asked, at random.

Tells which step comes ("doing"), what it may change ("may") and what it was told is done ("did"). Knows
nothing of what earlier processes were told: it goes on from what it finds.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import traceback
from typing import TYPE_CHECKING, Any

import stress_home
from stress_home import Home

from edgekv_storage import ConversationRow, QuotaExceeded

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("a", "b", "c")
STEPS = {
    "append": 10,
    "turn": 8,
    "update": 2,
    "flush": 2,
    "rename": 1,
    "evict": 1,
    "compact": 3,
    "forget": 1,
    "reopen": 1,
    "read": 1,
    "leave": 1,
}


class LateCommits(sqlite3.Connection):
    """SQLite as it must not be used: it says that something is done, and does it with what comes next."""

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """Every other commit is put off."""
        self._count = getattr(self, "_count", 0) + (statement == "COMMIT")
        if (statement == "COMMIT" and self._count % 2) or (
            statement == "BEGIN IMMEDIATE" and self.in_transaction
        ):
            statement = "SELECT 1"
        return super().execute(statement, *parameters)


def weaken() -> None:
    """Makes this process acknowledge turns too early, to see that the campaign notices."""
    connect = sqlite3.connect

    def late(name: str, *rest: Any, **options: Any) -> sqlite3.Connection:
        if "transcripts" in name:
            options["factory"] = LateCommits
        return connect(name, *rest, **options)

    sqlite3.connect = late  # type: ignore[assignment]


class Child:
    """One process's work. `tell_fd` is where it says what it does, one JSON line each."""

    steps = STEPS

    def __init__(self, path: Path, seed: str, tell_fd: int) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.seed = seed
        self.tell_fd = tell_fd
        self.count = 0

    def tell(self, kind: str, **what: object) -> None:
        """A line is shorter than a pipe's atomic write, so none is ever cut."""
        os.write(self.tell_fd, json.dumps({"kind": kind, **what}).encode() + b"\n")

    def open_home(self) -> Home:
        """Everything opened, with one of the readers."""
        return Home(self.path, io=self.rng.choice(("pread", "pread", "auto", "buffered")))

    def run(self, steps: int = 100_000) -> None:
        """Works until killed, or for so many steps."""
        try:
            while steps > 0:
                with self.open_home() as home:
                    self.tell("ready")
                    steps -= self.work(home, steps)
        except BaseException:
            self.tell("failed", trace=traceback.format_exc()[-3000:])
            raise

    def work(self, home: Home, steps: int) -> int:
        """Steps until there were enough or everything is to be closed; how many."""
        for number in range(1, steps + 1):
            step = self.rng.choices(list(self.steps), list(self.steps.values()))[0]
            self.tell("doing", step=step)
            if step == "leave":
                return number
            getattr(self, f"do_{step}")(home, self.pick(home))
        return steps

    def pick(self, home: Home) -> ConversationRow:
        """One of the conversations, made where it is not there."""
        name = self.rng.choice(NAMES)
        row = home.transcripts.get(name)
        if row is None:
            sequence_id = self.rng.randbytes(16)
            self.tell("may", step="create", sequence=sequence_id.hex(), name=name)
            row = home.transcripts.create_conversation(name, sequence_id, b"made by " + self.seed.encode())
            self.tell("did", step="create", sequence=sequence_id.hex(), name=name)
        return row

    def text(self, row: ConversationRow) -> str:
        """A turn's text that no other turn has."""
        self.count += 1
        return f"{row.sequence_id.hex()} {self.seed} {self.count} " + "x" * self.rng.randrange(0, 600)

    def do_append(self, home: Home, row: ConversationRow) -> None:
        chain = stress_home.chain_of(home, row.sequence_id, self.rng.randrange(stress_home.NUM_CHAINS))
        found = len(home.store.lookup(row.sequence_id, chain.keys, chain.ids))
        if found == len(chain.keys):
            return
        stop = min(len(chain.keys), found + self.rng.randrange(1, 12))
        try:
            stress_home.append(home, row.sequence_id, chain, found, stop)
        except QuotaExceeded:
            home.store.evict(stress_home.QUOTA_BYTES // 2)

    def do_turn(self, home: Home, row: ConversationRow) -> None:
        text = self.text(row)
        self.tell("may", step="turn", sequence=row.sequence_id.hex(), text=text)
        number = home.transcripts.append_turn(row.id, row.head, text.encode())
        self.tell("did", step="turn", sequence=row.sequence_id.hex(), text=text, turn=number)

    def do_update(self, home: Home, row: ConversationRow) -> None:
        if row.head is None:
            return
        text = self.text(row)
        self.tell("may", step="update", sequence=row.sequence_id.hex(), text=text, turn=row.head)
        home.transcripts.update_turn(row.head, text.encode())
        self.tell("did", step="update", sequence=row.sequence_id.hex(), text=text, turn=row.head)

    def do_rename(self, home: Home, row: ConversationRow) -> None:
        free = [name for name in NAMES if home.transcripts.get(name) is None]
        if free:
            home.transcripts.rename(row.id, self.rng.choice(free))

    def do_flush(self, home: Home, _: ConversationRow) -> None:
        home.store.flush()

    def do_evict(self, home: Home, row: ConversationRow) -> None:
        home.store.evict(self.rng.randrange(1, stress_home.QUOTA_BYTES), keep={row.sequence_id})

    def do_compact(self, home: Home, _: ConversationRow) -> None:
        """Makes most of a sealed segment useless, as damage would, and tidies: a few steps, or to the end."""
        home.spoil(self.rng)
        for _ in range(self.rng.choice((2, 4, 100))):
            if not home.store.tidy():
                break

    def do_forget(self, home: Home, row: ConversationRow) -> None:
        self.forget(home, row.sequence_id)

    def forget(self, home: Home, sequence_id: bytes) -> None:
        """In the order in which the program forgets: the key first."""
        self.tell("may", step="forget", sequence=sequence_id.hex())
        home.keys.destroy(sequence_id)
        home.store.forget(sequence_id)
        home.transcripts.delete_sequence(sequence_id)
        home.keys.finish(sequence_id)
        self.tell("did", step="forget", sequence=sequence_id.hex())

    def do_reopen(self, home: Home, _: ConversationRow) -> None:
        home.reopen_store()

    def do_read(self, home: Home, row: ConversationRow) -> None:
        served = stress_home.read_all(home, row.sequence_id)
        assert served.wrong == served.damaged == 0, f"{served}"
