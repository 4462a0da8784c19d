"""The io_uring reader against kernels and files that do not do what was asked: right, reported, never hanging."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading

import pytest
from patience import PATIENCE_S, Held

from edgekv_storage import StoreClosed
from edgekv_storage.files import SegmentFile
from edgekv_storage.io import uring
from edgekv_storage.io.pread import PreadReader
from edgekv_storage.io.protocol import ReadJob
from edgekv_storage.io.ring import Ring, RingUnusable
from edgekv_storage.io.uring import UringReader

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _needs_ring():
    try:
        Ring(1).close()
    except RingUnusable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def content(tmp_path):
    data = random.Random(5).randbytes(SIZE)
    (tmp_path / "file").write_bytes(data)
    return data


@pytest.fixture
def file(tmp_path, content):
    return SegmentFile(tmp_path / "file", use_direct=True)


class Job(ReadJob):
    """Reads into fresh memory, `lead` bytes into a page; remembers how it ended."""

    def __init__(self, file, offset, num_bytes, *, lead=0, wanted=True, buffered=False):
        super().__init__(file, offset, buffered=buffered)
        self.memory = memoryview(mmap.mmap(-1, lead + num_bytes))[lead:]
        self.wanted = wanted
        self.errors = []
        self.over = threading.Event()

    def begin(self):
        return [self.memory] if self.wanted else None

    def finish(self, error):
        self.errors.append(error)
        self.over.set()

    def wait(self):
        assert self.over.wait(PATIENCE_S), "the read hangs"
        assert len(self.errors) == 1, "finished twice"
        return self.errors[0]


class Failing(Ring):
    """A ring that fails at its n-th `send`."""

    sends_left = 3

    def send(self):
        self.sends_left -= 1
        if self.sends_left < 0 and self._unsent:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return super().send()


def test_aligned_or_not_the_bytes_are_right(file, content):
    """Guards direct reads at odd offsets, odd lengths and odd addresses, 200 of them at once."""
    rng = random.Random(1)
    reader = UringReader(16)
    jobs = []
    for _ in range(200):
        offset, lead = rng.choice([0, 4096, 8192, 4097, 777]), rng.choice([0, 0, 1, 512])
        num_bytes = rng.choice([1, 100, 4096, 12_288, 65_536, 131_072 + 5])
        jobs.append(Job(file, offset, num_bytes, lead=lead, buffered=rng.random() < 0.2))
    reader.submit(jobs, 0)
    for job in jobs:
        assert job.wait() is None
        assert bytes(job.memory) == content[job.offset : job.offset + len(job.memory)]
    reader.close()


@pytest.mark.parametrize("depth", [1, 4])
def test_reads_held_back_for_their_bytes_go_on(file, content, monkeypatch, depth):
    """Guards against sleeping for ever: what verifying makes room for is begun, though nothing is in flight."""
    monkeypatch.setattr(uring, "_MAX_BYTES", 4096)
    reader = UringReader(depth)
    jobs = [Job(file, at, 8192) for at in range(0, 50 * 8192, 8192)]
    reader.submit(jobs, 0)
    for job in jobs:
        assert job.wait() is None
        assert bytes(job.memory) == content[job.offset : job.offset + 8192]
    reader.close()


def test_a_second_odd_address_does_not_turn_direct_reads_off(file, content):
    """Guards the fast path: one caller's crooked buffer made every later read go through the page cache."""
    job = Job(file, 0, 8192)
    crooked = memoryview(mmap.mmap(-1, 16_384))[7:][:4096]
    straight = job.memory[:4096]
    job.begin = lambda: [straight, crooked]
    reader = UringReader(4)
    reader.submit([job], 0)
    assert job.wait() is None
    reader.close()
    assert bytes(straight) + bytes(crooked) == content[:8192]
    assert file.use_direct


def test_the_end_of_the_file_is_an_error_not_zeros(file):
    """Guards against short reads taken for whole ones."""
    reader = UringReader(4)
    jobs = [Job(file, SIZE - 4096, 8192), Job(file, SIZE, 4096), Job(file, SIZE - 10, 100)]
    reader.submit(jobs, 0)
    assert [job.wait().errno for job in jobs] == [errno.EIO] * 3
    reader.close()


def test_what_is_not_wanted_any_more_is_not_read(file):
    """Guards cancellation: finished once, memory untouched."""
    reader = UringReader(4)
    jobs = [Job(file, 0, 4096, wanted=i % 2 == 0) for i in range(40)]
    reader.submit(jobs, 0)
    assert [job.wait() is None for job in jobs] == [i % 2 == 0 for i in range(40)]
    assert all(bytes(job.memory) == bytes(4096) for job in jobs[1::2])
    reader.close()


def test_a_file_that_is_gone_is_that_jobs_error(tmp_path, file):
    """Guards the ring's thread against errors of a single file."""
    gone = SegmentFile(tmp_path / "gone", use_direct=True)
    reader = UringReader(4)
    jobs = [Job(gone, 0, 4096), Job(file, 0, 4096)]
    reader.submit(jobs, 0)
    assert jobs[0].wait().errno == errno.ENOENT
    assert jobs[1].wait() is None
    reader.close()


def test_no_ring_means_threads_and_one_line(file, content):
    """Guards a system that takes io_uring away after it was chosen."""
    notices = []

    def refuse(_depth):
        raise RingUnusable("the system refuses io_uring (Operation not permitted)")

    reader = UringReader(4, notify=notices.append, make_ring=refuse)
    jobs = [Job(file, i * 4096, 4096) for i in range(50)]
    reader.submit(jobs[:25], 0)
    reader.submit(jobs[25:], 0)
    assert all(job.wait() is None for job in jobs)
    assert all(bytes(job.memory) == content[job.offset : job.offset + 4096] for job in jobs)
    assert len(notices) == 1
    assert "refuses io_uring" in notices[0]
    assert reader.name.startswith("pread")
    reader.close()


def test_a_ring_that_breaks_loses_no_read(file, content):
    """Guards waiters: reads in the kernel are awaited, those not sent are read by threads, all of them once."""
    notices = []
    reader = UringReader(4, notify=notices.append, make_ring=Failing)
    jobs = [Job(file, i * 4096, 4096) for i in range(100)]
    for job in jobs:
        reader.submit([job], 0)
    assert all(job.wait() is None for job in jobs)
    assert all(bytes(job.memory) == content[job.offset : job.offset + 4096] for job in jobs)
    reader.close()
    assert len(notices) == 1
    assert "io_uring failed (Bad file descriptor)" in notices[0]


def test_close_waits_and_refuses(file):
    """Guards memory after close: whatever was in flight is over, what waited is told, later jobs are refused."""
    reader = UringReader(2)
    jobs = [Job(file, i * 4096, 65_536) for i in range(100)]
    reader.submit(jobs, 0)
    reader.close()
    assert all(job.over.is_set() for job in jobs)
    ends = {job.wait().errno if job.wait() else 0 for job in jobs}
    assert ends <= {0, errno.ECANCELED}
    with pytest.raises(StoreClosed):
        reader.submit([Job(file, 0, 4096)], 0)
    reader.close()


@pytest.mark.parametrize("make", [UringReader, PreadReader])
def test_a_child_of_fork_is_refused(file, make):
    """Guards against a child that waits for threads it does not have, or shares its parent's ring."""
    reader = make()
    first = Job(file, 0, 4096)
    reader.submit([first], 0)
    first.wait()
    child = os.fork()
    if child == 0:
        try:
            reader.submit([Job(file, 0, 4096)], 0)
        except StoreClosed:
            reader.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    again = Job(file, 4096, 4096)
    reader.submit([again], 0)
    assert again.wait() is None
    reader.close()


def test_rings_are_given_back(file):
    """Guards descriptors: the binding frees nothing by itself."""
    held = Held()
    for _ in range(20):
        reader = UringReader(4)
        job = Job(file, 0, 4096)
        reader.submit([job], 0)
        job.wait()
        reader.close()
    assert len(held.new_files()) <= 2  # the file's own two


@pytest.mark.parametrize("bad", ["readonly", "empty", "negative", "closed"])
def test_nothing_unchecked_reaches_the_kernel(file, bad):
    """Guards other memory: a queue slot whose preparation failed is sent later, with an old read in it."""
    ring = Ring(2)
    good = memoryview(mmap.mmap(-1, 4096))
    reads = {
        "readonly": (file.direct, [memoryview(bytes(4096))], 0),
        "empty": (file.direct, [good[:0]], 0),
        "negative": (file.direct, [good], -1),
        "closed": (-1, [good], 0),
    }
    with pytest.raises(ValueError, match="read"):
        ring.prepare("bad", *reads[bad])
    ring.start(ring.prepare("good", file.direct, [good], 0))
    assert ring.send()
    done = []
    while not done:
        done = ring.completed()
    assert done == [("good", 4096)]
    ring.close()
