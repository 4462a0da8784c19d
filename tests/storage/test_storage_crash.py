"""kill -9 of a real process at random moments: no acknowledged turn lost, no wrong leaf served."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from storage_fixtures import OTHER, SEQUENCE, TINY, Encryption, leaf_bytes_of, open_store

from edgekv_storage import DataDir, LeafPlace, LeafRead, Store, Transcripts

pytestmark = pytest.mark.usefixtures("encryption")

CHILD = Path(__file__).with_name("storage_crash_child.py")


def _run_and_kill(path: Path, seed: int, delay: float) -> list[tuple[int, bytes]]:
    """Turns that the child was told are durable."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(CHILD.parent)])}
    kind = "plain" if Encryption.keys is None else "encrypted"
    command = [sys.executable, str(CHILD), str(path), str(seed), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(delay)
        child.kill()
        lines = child.stdout.read().splitlines(keepends=True)
    told = [line.split() for line in lines if line.endswith("\n")]
    return [(int(number), f"{s} {turn}".encode()) for _, number, s, turn in told]


def _check(path: Path) -> int:
    """Reads every leaf of every record and compares it; the bytes of a leaf follow from its key."""
    found = 0
    with open_store(path) as store:
        for sequence_id in (SEQUENCE, OTHER):
            store._load(sequence_id)
            for segment in store._catalog.segments_of(sequence_id):
                for number in range(segment.num_records):
                    known = store._catalog.record(segment.header.segment, number)
                    assert known is not None
                    _read_record(store, LeafPlace(segment.header.segment, number, 0), known.keys)
                    found += len(known.keys)
        assert store.check() == []
    return found


def _read_record(store: Store, place: LeafPlace, keys: list[bytes]) -> None:
    for layer in range(TINY.num_layers):
        out = memoryview(bytearray(len(keys) * TINY.leaf_bytes))
        transfer = store.read([LeafRead(place, layer, len(keys), out)])
        assert transfer.wait(20)
        assert transfer.result == []
        assert bytes(out) == b"".join(leaf_bytes_of(TINY, key, layer) for key in keys)


def _campaign(path: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    durable: dict[int, bytes] = {}
    found = 0
    for number in range(kills):
        durable.update(_run_and_kill(path, number, rng.uniform(0, 0.08)))
        found += _check(path)
        with DataDir.open(path) as directory, Transcripts.open(directory) as transcripts:
            chat = transcripts.get("trip")
            assert chat is not None
            turns = {t.id: t.blob for t in transcripts.turns(chat.id)}
            assert {i: turns.get(i) for i in durable} == durable
    assert found > 0
    assert len(durable) > kills / 2


def test_a_few_kills(data_dir):
    """Guards the order of writes everywhere: 12 kills during appends, flushes, forgets and reopenings."""
    _campaign(data_dir, kills=12, seed=1)


@pytest.mark.stress
def test_many_kills(data_dir):
    """The same, 300 times."""
    _campaign(data_dir, kills=300, seed=2)
