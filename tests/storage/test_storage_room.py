"""A full drive in the middle of work: something gives way, the work goes on; and owners that die."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys

import pytest
from powerloss import LAYOUT, QUOTA, Chat, open_simulated
from storage_fixtures import OTHER, SEQUENCE, Model, open_store, segments_in

from edgekv_storage import DataDir, DiskFull, Locked, QuotaExceeded
from edgekv_storage.io.faulty import FaultyDisk

_LEAF_BYTES = LAYOUT.num_layers * LAYOUT.leaf_bytes


@pytest.mark.parametrize("limit", ["quota", "drive", "floor"])
def test_work_goes_on_when_there_is_no_room(limit):
    """Guards endless conversations: each limit makes others give way, and is kept throughout."""
    options = {
        "quota": {"quota_bytes": QUOTA},
        "drive": {"quota_bytes": 1 << 40},
        "floor": {"quota_bytes": 1 << 40, "free_floor_bytes": QUOTA},
    }[limit]
    capacity = {"quota": 1 << 40, "drive": QUOTA, "floor": 2 * QUOTA}[limit]
    disk, rng = FaultyDisk(1, capacity_bytes=capacity), random.Random(1)
    chats = [Chat(bytes([i]) * 16) for i in range(8)]
    evictions = 0
    with open_simulated(disk, **options) as store:
        for turn in range(200):
            chat = chats[turn % 8]
            try:
                chat.append(store, rng, 2)
            except (QuotaExceeded, DiskFull):
                evicted = store.make_room(2 * _LEAF_BYTES, {chat.sequence_id})
                assert evicted
                assert chat.sequence_id not in evicted
                assert {loss.why for i in evicted for loss in store.forgotten(i)} <= {
                    "the disk limit was reached" if limit == "quota" else "the drive was nearly full"
                }
                chat.append(store, rng, 2)
                evictions += 1
            used = sum(item.num_bytes for item in disk.items(store.directory.path))
            assert used <= QUOTA
        assert 3 < evictions < 100, "each makes room for more than one append"
        assert sum(len(chat.verify(store)) for chat in chats) > 20
        assert store.check() == []


def test_one_conversation_alone_at_the_limit(data_dir):
    """Guards the active conversation: it does not eat its own beginning to go on."""
    model = Model(LAYOUT)
    with open_store(data_dir, LAYOUT, quota_bytes=200_000) as store:
        with contextlib.suppress(QuotaExceeded):
            while len(model.keys) < 1000:
                model.append(store, 4)
        assert len(model.keys) < 1000
        model.ids = model.ids[: 16 * len(model.find(store))]
        assert store.make_room(4 * _LEAF_BYTES, {SEQUENCE}) == []
        assert model.read(store, model.find(store)) == (2 * len(model.keys), 0)


_OWNER = """
import sys
from pathlib import Path
from edgekv_storage import DataDir, Locked
try:
    directory = DataDir.open(Path(sys.argv[1]))
except Locked as error:
    print("locked", error, flush=True)
else:
    print("owner", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("count", [2, 5])
def test_several_processes_open_at_once_and_the_owner_dies(data_dir, count):
    """Guards the lock: one of them owns the directory, the others say so; a killed owner leaves it free."""
    model = Model(LAYOUT, OTHER)
    with open_store(data_dir, LAYOUT) as store:
        model.append(store, 3)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for _ in range(1 if count > 2 else 2):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", _OWNER, str(data_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(count)
        ]
        lines = [child.stdout.readline() for child in children]
        owners = [child for child, line in zip(children, lines, strict=True) if line == "owner\n"]
        assert len(owners) == 1
        assert all("is in use by" in line for line in lines if line != "owner\n")
        with pytest.raises(Locked):
            DataDir.open(data_dir)
        owners[0].send_signal(signal.SIGKILL)
        for child in children:
            child.communicate()
        with open_store(data_dir, LAYOUT) as store:
            assert model.read(store, model.find(store)) == (6, 0)
    assert len(segments_in(data_dir)) == 1
