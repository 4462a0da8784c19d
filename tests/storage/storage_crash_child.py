"""Appends leaves and turns until it is killed, telling each acknowledged turn on stdout (run by the test)."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from storage_fixtures import OTHER, SEQUENCE, TINY, Encryption, FixedKeys, Model, open_store

from edgekv_storage import DataDir, Transcripts


def main(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with DataDir.open(path) as directory, Transcripts.open(directory) as transcripts:
        chat = transcripts.get("trip") or transcripts.create_conversation("trip", SEQUENCE)
        store = open_store(directory)
        models = [Model(TINY, SEQUENCE, seed=seed * 1000), Model(TINY, OTHER, seed=seed * 1000 + 500)]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for turn in range(10_000):
            model = models[turn % 2]
            model.append(store, rng.randrange(1, 40))
            step = rng.randrange(6)
            if step == 0:
                store.flush()
            if step == 1:
                store.forget(model.sequence_id)
            if step == 2:
                store.close()
                store = open_store(directory)
            number = transcripts.append_turn(chat.id, None, b"%d %d" % (seed, turn))
            sys.stdout.write(f"turn {number} {seed} {turn}\n")
            sys.stdout.flush()


if sys.argv[3] == "encrypted":
    Encryption.keys = FixedKeys()
main(Path(sys.argv[1]), int(sys.argv[2]))
