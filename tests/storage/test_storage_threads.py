"""Readers in many threads while one thread writes, forgets and closes: right, reported or refused."""

from __future__ import annotations

import mmap
import random
import threading

import pytest
from patience import PATIENCE_S
from storage_fixtures import OTHER, PAGED, SEQUENCE, TINY, Model, leaf_bytes_of, open_store

from edgekv_storage import LeafRead, StoreClosed

pytestmark = pytest.mark.usefixtures("encryption", "io")


def test_readers_race_appends_forgets_and_close(data_dir):
    """Guards descriptors and places that go away in mid-read; every transfer completes."""
    store = open_store(data_dir)
    model = Model(TINY)
    stable = Model(TINY, OTHER, seed=500)
    stable.append(store, 32)
    failures: list[str] = []
    served = [0]

    def read_until_closed(seed: int) -> None:
        rng = random.Random(seed)
        keys, size = stable.keys, TINY.leaf_bytes
        try:
            while True:
                places = stable.find(store)
                first = rng.randrange(len(places))
                count = rng.randrange(1, len(places) - first + 1)
                layer = rng.randrange(3)
                out = memoryview(bytearray(count * size))
                transfer = store.read([LeafRead(places[first], layer, count, out)], priority=rng.randrange(3))
                if rng.random() < 0.2:
                    transfer.cancel()
                if not transfer.wait(PATIENCE_S):
                    failures.append("a transfer hangs")
                    return
                wrong = b"".join(leaf_bytes_of(TINY, key, layer) for key in keys[first : first + count])
                if not transfer.result and bytes(out) != wrong:
                    failures.append("a wrong leaf")
                if not transfer.result:
                    served[0] += 1
        except StoreClosed:
            return
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=read_until_closed, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for turn in range(40):
        model.append(store, 3)
        if turn % 5 == 4:
            store.flush()
        if turn % 10 == 9:
            store.forget(SEQUENCE)
            model = Model(TINY, seed=turn)
    store.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failures == []
    assert served[0] > 0
    with open_store(data_dir) as store:
        assert stable.read(store, stable.find(store)) == (96, 0)
        assert store.check() == []


def test_higher_priority_goes_first(data_dir):
    """Guards the queue's order: with one reader thread, what is urgent overtakes what waits."""
    from edgekv_storage.io.pread import PreadReader
    from edgekv_storage.io.protocol import ReadJob

    started, release, order = threading.Event(), threading.Event(), []

    class Job(ReadJob):
        def __init__(self, name: str) -> None:
            super().__init__(None, 0)
            self.name = name

        def begin(self) -> None:
            if self.name == "first":
                started.set()
                release.wait(PATIENCE_S)

        def finish(self, error: OSError | None) -> None:
            order.append(self.name)

    reader = PreadReader(1)
    reader.submit([Job("first")], 0)
    assert started.wait(PATIENCE_S)
    reader.submit([Job("later a"), Job("later b")], 5)
    reader.submit([Job("urgent")], -1)
    release.set()
    while len(order) < 4:
        threading.Event().wait(0.001)
    reader.close()
    assert order == ["first", "urgent", "later a", "later b"]


def test_32_threads_with_random_cancels(data_dir):
    """Guards queues, pooled memory and counters: each transfer ends once, with right bytes or a reason."""
    model = Model(PAGED)
    failures: list[str] = []
    with open_store(data_dir, PAGED) as store:
        model.append(store, 64)
        store.flush()
        places, keys, size = model.find(store), model.keys, PAGED.leaf_bytes
        wanted = [leaf_bytes_of(PAGED, key, 1) for key in keys]

        def read(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(30):
                firsts = [rng.randrange(60) for _ in range(rng.randrange(1, 9))]
                counts = [rng.randrange(1, 5) for _ in firsts]
                arena = memoryview(mmap.mmap(-1, sum(counts) * size + 64))[rng.choice([0, 0, 7]) :]
                ends = [sum(counts[: i + 1]) * size for i in range(len(counts))]
                outs = [arena[end - n * size : end] for end, n in zip(ends, counts, strict=True)]
                requests = [
                    LeafRead(places[f], 1, n, o) for f, n, o in zip(firsts, counts, outs, strict=True)
                ]
                transfer = store.read(requests, priority=rng.randrange(3))
                if rng.random() < 0.4:
                    transfer.cancel()
                if not transfer.wait(PATIENCE_S):
                    failures.append("a transfer hangs")
                    return
                missing = {(fault.request, fault.leaf) for fault in transfer.result}
                if missing and {fault.reason for fault in transfer.result} != {"cancelled"}:
                    failures.append(f"not cancelled: {transfer.result[0]}")
                for i, (first, out) in enumerate(zip(firsts, outs, strict=True)):
                    for leaf in range(counts[i]):
                        got = bytes(out[leaf * size : (leaf + 1) * size])
                        if (i, leaf) not in missing and got != wanted[first + leaf]:
                            failures.append("a wrong leaf")

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert failures == []
        assert store.stats().damaged_leaves == 0
        assert store.check() == []
