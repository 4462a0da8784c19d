"""`bench io` on tiny files: which rows there are, that fio stands beside them, that nothing is left behind."""

import dataclasses
import shutil
import statistics

import pytest

from edgekv.bench import cli, fio, gil
from edgekv.bench import io as reading
from edgekv.bench.leaves import Arena, read_leaves, write_leaves
from edgekv_storage import MemoryKeys

KIB, MIB = 1 << 10, 1 << 20
needs_fio = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")


@pytest.fixture(autouse=True)
def tiny_plan(monkeypatch):
    plan = reading.Plan(
        (64 * KIB, 256 * KIB), (1, 32), 2, 0.02, file_bytes=4 * MIB, append_bytes=MIB, gil_bytes=2 * MIB
    )
    monkeypatch.setattr(reading, "QUICK", plan)
    monkeypatch.setattr(gil, "_ALONE_SECONDS", 0.02)
    return plan


def test_every_backend_size_and_depth_has_its_row(bench, data_dir, monkeypatch):
    """Guards the table: a metric with its labels is unique, plain and encrypted stand apart, no peer is null."""
    monkeypatch.setattr(cli, "find_fio", lambda: None)
    code, report = bench("io", "--quick")
    assert code == 0
    assert report["machine"]["peer"] is None
    labels = ("metric", "backend", "size", "depth", "encrypted")
    rows = {tuple(row[name] for name in labels): row for row in report["rows"]}
    assert len(rows) == len(report["rows"])
    for size in (64 * KIB, 256 * KIB):
        for encrypted in (False, True):
            for depth in (1, 32):
                row = rows["io_read_bytes_per_s", "pread", size, depth, encrypted]
                assert row["ours"] > 0
                assert row["peer"] is None
                assert row["runs"] == 2
                assert rows["io_read_cpu_share", "pread", size, depth, encrypted]["ours"] > 0
            assert rows["io_append_bytes_per_s", "pwritev", size, None, encrypted]["ours"] > 0
        assert ("io_read_bytes_per_s", "buffered", size, 32, False) in rows
    assert 0 < rows["gil_pace_kept", "pread", 256 * KIB, None, True]["ours"] < 3
    assert list(data_dir.glob("bench-*")) == []


@needs_fio
def test_fio_reads_the_same_files_and_its_ratio_is_ours_over_its(bench, tiny_plan, monkeypatch):
    """Guards the peer's column: its figures belong to the same size and depth, and to this run."""
    small = dataclasses.replace(tiny_plan, sizes=(64 * KIB,), depths=(8,), rounds=1)
    monkeypatch.setattr(reading, "QUICK", small)
    code, report = bench("io", "--quick")
    assert code == 0
    assert report["machine"]["peer"].startswith("fio-")
    for row in report["rows"]:
        if row["metric"] in {"io_read_bytes_per_s", "io_append_bytes_per_s"}:
            assert row["peer"] > 0
            assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])


@needs_fio
def test_fio_that_fails_is_no_peer(tmp_path):
    """Guards the run: a file fio cannot open must not end the measurement or count as zero."""
    found = fio.find_fio()
    assert found.read([tmp_path / "gone"], 4096, 1, 0.01) is None
    broken = dataclasses.replace(found, program="/nonexistent/fio")
    assert broken.read([tmp_path / "gone"], 4096, 1, 0.01) is None


def test_without_fio_one_line_says_how_to_get_it(bench, monkeypatch):
    """Guards standard output: the hint must not land in the JSON."""
    monkeypatch.setattr(cli, "find_fio", lambda: None)
    monkeypatch.setattr(cli.reading, "measure", lambda *_: [])
    code, report = bench("io", "--quick")
    assert code == 0
    assert report["rows"] == []


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True])
def test_another_thread_keeps_its_pace(tmp_path, encrypted):
    """Guards the GIL: 1 GB is read in 256 KiB pieces and a thread that only computes keeps 90 % of its pace."""
    keys = MemoryKeys() if encrypted else None
    leaves, _ = write_leaves(tmp_path / "store", 256 * KIB, 128 * MIB, 4 * MIB, keys)
    arena = Arena()
    for backend in [name for name in reading.usable_backends(tmp_path) if name != "buffered"]:
        with leaves.open(backend) as store:
            kept, _ = gil.pace_kept(
                lambda store=store: read_leaves(store, leaves, arena, 32, num_bytes=100_000_000), 10
            )
        assert statistics.median(kept) >= 0.9, backend
