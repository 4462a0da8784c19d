"""What this machine offers, found at run time: the device, its free memory, cores. Decides nothing durable."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import torch

from edgekv.errors import ConfigError

CPU_DEVICE_BUDGET = 1 << 30


def choose_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where torch has it.

    Raises:
        ConfigError: `cuda` was asked for and this torch or machine has none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is usable: use --device cpu, or install a CUDA build of torch")
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def device_budget(wanted: int | None, device: torch.device) -> int:
    """Bytes of the device pool: as asked, else half of the free device memory, 1 GiB on a CPU."""
    if wanted is not None:
        return wanted
    return CPU_DEVICE_BUDGET if device.type == "cpu" else free_memory(device) // 2


def num_cores() -> int:
    """Physical cores this process may run on: a hyperthread's sibling adds contention, not speed."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return max(1, len(cores))


def return_memory() -> None:
    """Give what was freed back to the system: glibc keeps pieces of less than 32 MiB, most of a small model's, and
    torch keeps all that it had of a GPU.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # another C library, which has no such habit
        ctypes.CDLL(None).malloc_trim(0)
