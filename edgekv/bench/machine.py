"""The limits of this machine, measured now: how fast memory and the disk below the data directory can be read.

Knows the hardware only; a figure here is what edgekv could reach at best, in this very run.
"""

from __future__ import annotations

import mmap
import os
import platform
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekv.engine.machine import num_cores

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY_BYTES = 512 << 20  # more than the caches hold
DISK_BYTES = 256 << 20
READ_BYTES = 256 << 10
READ_DEPTH = 16
_REPEATS = 5  # the median counts: on a shared machine a single pass may be too slow or too fast


def measure_machine(data_dir: Path, device: torch.device) -> dict[str, object]:
    """Names and limits; None for what cannot be measured here. Leaves nothing behind in `data_dir`."""
    limits: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "memory_read_gb_per_s": round(memory_read_rate() / 1e9, 2),
        "disk_read_mb_per_s": _in_mb(disk_read_rate(data_dir)),
        "disk_read_bytes": READ_BYTES,
        "disk_read_depth": READ_DEPTH,
    }
    if device.type == "cuda":
        limits["device_memory_read_gb_per_s"] = round(_device_read_rate(device) / 1e9, 2)
        limits["host_to_device_gb_per_s"] = round(_upload_rate(device) / 1e9, 2)
    return limits


def memory_read_rate(num_threads: int | None = None) -> float:
    """Bytes per second that all cores together can read from memory."""
    threads = num_threads or num_cores()
    parts = np.array_split(np.ones(MEMORY_BYTES // 8, np.int64), threads)

    def read(part: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
        return int(np.bitwise_or.reduce(part))  # releases the GIL, one vector instruction a line

    with ThreadPoolExecutor(threads) as pool:
        seconds = [_seconds(lambda: list(pool.map(read, parts))) for _ in range(_REPEATS)]
    return MEMORY_BYTES / median(seconds)


def disk_read_rate(folder: Path) -> float | None:
    """Bytes per second of random 256 KiB direct reads, 16 at a time, of a new file in `folder`.

    None where the file cannot be written or the file system has no direct reads.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="bench-") as file:
            block = os.urandom(1 << 20)
            for _ in range(max(1, DISK_BYTES >> 20)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return _direct_read_rate(file.name)
    except OSError:
        return None


def _direct_read_rate(path: str) -> float:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        offsets = list(range(0, os.fstat(fd).st_size, READ_BYTES))
        random.Random(0).shuffle(offsets)  # noqa: S311  # an order, not a secret
        buffers = [mmap.mmap(-1, READ_BYTES) for _ in range(READ_DEPTH)]

        def read(worker: int) -> None:
            for offset in offsets[worker::READ_DEPTH]:
                os.preadv(fd, [buffers[worker]], offset)

        with ThreadPoolExecutor(READ_DEPTH) as pool:
            seconds = [_seconds(lambda: list(pool.map(read, range(READ_DEPTH)))) for _ in range(_REPEATS)]
        return len(offsets) * READ_BYTES / median(seconds)
    finally:
        os.close(fd)


def _device_read_rate(device: torch.device) -> float:
    data = torch.ones(1 << 28, dtype=torch.float32, device=device)
    return data.nbytes / median(_seconds(lambda: data.sum().item()) for _ in range(_REPEATS))


def _upload_rate(device: torch.device) -> float:
    source = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)

    def copy() -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)

    return source.nbytes / median(_seconds(copy) for _ in range(_REPEATS))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _in_mb(rate: float | None) -> float | None:
    return None if rate is None else round(rate / 1e6, 1)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
