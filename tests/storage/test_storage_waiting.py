"""Reads that their caller waits for: mostly in its own thread, the same bytes, never lost or made twice."""

from __future__ import annotations

import errno
import mmap
import random
import threading

import pytest
from patience import PATIENCE_S

from edgekv_storage import StoreClosed
from edgekv_storage.files import SegmentFile
from edgekv_storage.io.pread import PreadReader
from edgekv_storage.io.protocol import ReadJob
from edgekv_storage.io.ring import Ring, RingUnusable
from edgekv_storage.io.uring import UringReader

SIZE = 1 << 19


@pytest.fixture
def content(tmp_path):
    data = random.Random(6).randbytes(SIZE)
    (tmp_path / "file").write_bytes(data)
    return data


@pytest.fixture
def file(tmp_path, content):
    return SegmentFile(tmp_path / "file", use_direct=True)


class Job(ReadJob):
    """Reads into fresh memory; remembers how it ended and in which thread."""

    def __init__(self, file, offset, num_bytes, *, wanted=True):
        super().__init__(file, offset)
        self.memory = memoryview(mmap.mmap(-1, num_bytes))
        self.wanted, self.ends, self.thread = wanted, [], None
        self.over = threading.Event()

    def begin(self):
        return [self.memory] if self.wanted else None

    def finish(self, error):
        self.ends.append(error)
        self.thread = threading.current_thread()
        self.over.set()

    def wait(self):
        assert self.over.wait(PATIENCE_S), "the read hangs"
        assert len(self.ends) == 1, "finished twice"
        return self.ends[0]


def needs_ring():
    try:
        Ring(1).close()
    except RingUnusable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("make", [UringReader, PreadReader])
def test_all_of_them_arrive(file, content, make):
    """Guards more reads than the ring holds, odd offsets, ends of files and reads nobody wants any more."""
    reader, rng = make(), random.Random(1)
    jobs = [
        Job(file, rng.choice([0, 4096, 777]) + i * 4096, rng.choice([4096, 100, 12_288])) for i in range(80)
    ]
    past, unwanted = Job(file, SIZE - 10, 100), Job(file, 0, 4096, wanted=False)
    reader.run([*jobs, past, unwanted])
    assert all(job.wait() is None for job in jobs)
    assert all(bytes(job.memory) == content[job.offset : job.offset + len(job.memory)] for job in jobs)
    assert past.wait().errno == errno.EIO
    assert unwanted.wait().errno == errno.ECANCELED
    assert bytes(unwanted.memory) == bytes(4096)
    reader.run([])
    reader.close()
    with pytest.raises(StoreClosed):
        reader.run([Job(file, 0, 4096)])


def test_the_caller_reads_itself_and_only_one_does(file, content):
    """Guards the ring of the waiting thread: two callers in it at once would take each other's completions."""
    needs_ring()
    reader = UringReader()
    found = []

    def call():
        for i in range(60):
            jobs = [Job(file, (i + n) * 4096, 4096) for n in range(5)]
            reader.run(jobs)
            found.extend((job.wait(), bytes(job.memory) == content[job.offset :][:4096]) for job in jobs)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(None, True)] * 900
    alone = Job(file, 0, 4096)
    reader.run([alone])
    assert alone.thread is threading.current_thread()
    reader.close()


@pytest.mark.parametrize("sends", [0, 1, 3])
def test_a_ring_that_breaks_loses_no_read(file, content, sends):
    """Guards a step against a ring that fails under it: what the kernel has is awaited, the rest read plainly."""
    needs_ring()

    class Failing(Ring):
        left = sends

        def send(self):
            self.left -= 1
            if self.left < 0 and self._unsent:
                raise OSError(errno.EBADF, "Bad file descriptor")
            return super().send()

    reader = UringReader(make_ring=Failing)
    for _ in range(2):
        jobs = [Job(file, i * 4096, 4096) for i in range(70)]
        reader.run(jobs)
        assert all(job.wait() is None for job in jobs)
        assert all(bytes(job.memory) == content[job.offset : job.offset + 4096] for job in jobs)
    reader.close()


def test_where_there_is_no_ring_the_reader_does_it(file):
    """Guards systems that refuse io_uring: asked once, then left to the threads."""
    asked = []

    def refuse(depth):
        asked.append(depth)
        raise RingUnusable("refused")

    reader = UringReader(make_ring=refuse)
    for _ in range(3):
        jobs = [Job(file, i * 4096, 4096) for i in range(10)]
        reader.run(jobs)
        assert all(job.wait() is None for job in jobs)
    assert len(asked) == 2  # once for waiting callers, once for the reader itself
    reader.close()
