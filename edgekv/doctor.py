"""`edgekv doctor`: what was found on this machine, what edgekv would choose, and why.

Looks, measures shortly and reports; loads no weights, creates no file and changes nothing. Each finding
stands alone: one that fails says so and the others are still made.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.conversation.master import describe
from edgekv.engine.machine import choose_device, device_budget, free_memory, num_cores
from edgekv.errors import EdgeKVError
from edgekv.models.catalog import resolve_model
from edgekv.models.config import ModelConfig
from edgekv.models.gguf import open_gguf
from edgekv.models.weights import choose_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgekv.config import Config
    from edgekv_storage import ReaderChoice

SUPPORTED_MACHINES = ("x86_64", "aarch64")
GIB = 1 << 30
MEASURE_S = 0.5
DISK_READ_BYTES = 1 << 20
MEMORY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `is_fine` is False for what will not work or is worse than it could be."""

    name: str
    value: str
    why: str = ""
    is_fine: bool = True


def examine(config: Config) -> list[Finding]:
    """All findings, in the order they are shown; takes about two seconds."""
    torch.set_num_threads(config.threads or num_cores())
    findings = [_python(), _platform(), _torch(), _tokenizer_library()]
    findings += _guarded("model", lambda: _model(config))
    findings += _guarded("device", lambda: _device(config))
    findings += _guarded("kernels", _kernels)
    findings += _guarded("threads", lambda: [_threads(config)])
    findings += _guarded("data_dir", lambda: _data_dir(config.data_dir))
    findings += _guarded("encryption", lambda: [Finding(*told) for told in describe(config)])
    findings += [
        Finding("host_budget", _gib(config.host_budget)),
        Finding("disk_budget", _gib(config.disk_budget)),
        _memory_bandwidth(),
    ]
    return [*findings, *_guarded("io", lambda: _disk(config))]


def _guarded(name: str, find: Callable[[], list[Finding]]) -> Iterator[Finding]:
    try:
        yield from find()
    except (EdgeKVError, OSError) as error:
        yield Finding(name, "not usable", str(error), is_fine=False)


def _python() -> Finding:
    return Finding("python", platform.python_version(), sys.executable)


def _platform() -> Finding:
    system, machine = platform.system(), platform.machine()
    value = f"{system} {platform.release()} {machine}"
    if system != "Linux":
        return Finding(
            "platform",
            value,
            "only Linux is supported: direct I/O, file locking and the native kernels are untested here",
            is_fine=False,
        )
    if machine not in SUPPORTED_MACHINES:
        return Finding(
            "platform", value, "no native kernels for this processor: the slow twins run", is_fine=False
        )
    return Finding("platform", value)


def _torch() -> Finding:
    cuda = "CUDA " + str(torch.version.cuda) if torch.version.cuda else "no CUDA in this build"
    return Finding("torch", str(torch.__version__), cuda)


def _tokenizer_library() -> Finding:
    if importlib.util.find_spec("llama_cpp") is None:
        return Finding(
            "tokenizer",
            "missing",
            "llama-cpp-python is not installed; it is compiled on installation and needs a C/C++ compiler",
            is_fine=False,
        )
    return Finding("tokenizer", "llama-cpp-python", "vocabulary only; the weights never reach it")


def _model(config: Config) -> list[Finding]:
    path = resolve_model(config.model, config.data_dir)
    why = "chosen by option, environment or TOML" if config.model else "none was chosen: the bundled one"
    with open_gguf(path) as file:
        model = ModelConfig.from_gguf(file)
        mode, reason = choose_mode(file, config.weights, free_memory(choose_device(config.device)))
    kv = model.num_layers * 2 * model.num_kv_heads * model.head_dim * 2
    shape = (
        f"{model.architecture}, {model.num_layers} layers, window {model.context_length:,}, "
        f"{kv:,} bytes of KV a token, leaves of {LEAF_TOKENS} tokens"
    )
    return [
        Finding("model", str(path), why),
        Finding("model_kind", model.name, shape),
        Finding("weights", mode, reason),
    ]


def _device(config: Config) -> list[Finding]:
    device = choose_device(config.device)
    why = "asked for" if config.device != "auto" else "auto: CUDA where torch can use it"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    budget = device_budget(config.device_budget, device)
    given = "asked for" if config.device_budget is not None else "default for this device"
    free = f"{_gib(free_memory(device))} free"
    return [
        Finding("device", device.type, f"{why}; {name}"),
        Finding("device_budget", _gib(budget), f"{given}; {free}", is_fine=budget <= free_memory(device)),
    ]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.machine()


def _kernels() -> list[Finding]:
    import edgekv_kernels  # noqa: PLC0415  probing the native module is this finding's own failure

    return [Finding(f"kernels_{part}", value) for part, value in edgekv_kernels.describe().items()]


def _threads(config: Config) -> Finding:
    why = "asked for" if config.threads else "one for each physical core this process may use"
    return Finding("threads", str(config.threads or num_cores()), why)


def _data_dir(path: Path) -> list[Finding]:
    """Looks without creating: asking the doctor must not make a data directory."""
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.exists())
        writable = os.access(parent, os.W_OK)
        why = "made at the first durable conversation" if writable else f"{parent} cannot be written"
        return [Finding("data_dir", f"{path} (not there yet)", why, is_fine=writable), _space(parent)]
    return [_data_dir_state(path), _space(path)]


def _data_dir_state(path: Path) -> Finding:
    from edgekv_storage import DataDir, StorageError  # noqa: PLC0415  only where there is a directory

    if not os.access(path, os.W_OK | os.X_OK):
        return Finding("data_dir", str(path), "it cannot be written", is_fine=False)
    if not (path / "LOCK").exists():
        return Finding("data_dir", str(path), "no store in it yet")
    try:
        DataDir.open_read_only(path).close()
    except StorageError as error:
        return Finding("data_dir", str(path), str(error), is_fine=False)
    owner = DataDir.owner(path)
    if owner is not None:
        return Finding("data_dir", str(path), f"in use by process {owner}", is_fine=False)
    return Finding("data_dir", str(path), "writable, not in use")


def _space(path: Path) -> Finding:
    usage = shutil.disk_usage(path)
    floor = max(5 * GIB, usage.total // 20)
    why = f"{_gib(floor)} of it always stay free"
    return Finding("disk_free", _gib(usage.free), why, is_fine=usage.free > floor)


def _memory_bandwidth() -> Finding:
    """Sequential reads of a buffer larger than any cache, all threads."""
    values = torch.zeros(MEMORY_BYTES // 8, dtype=torch.int64)
    best, end = 0.0, time.perf_counter() + MEASURE_S
    while time.perf_counter() < end:
        began = time.perf_counter()
        values.sum()
        best = max(best, MEMORY_BYTES / (time.perf_counter() - began))
    return Finding("memory_read", f"{best / 1e9:.1f} GB/s", f"{torch.get_num_threads()} threads, best pass")


def _disk(config: Config) -> list[Finding]:
    """How the store will read and how fast its drive is, tried on a file that is there already.

    Nothing is written: a data directory that is not there yet is judged by the model file if both lie on
    the same drive.
    """
    from edgekv_storage import choose_reader, reader_name, reads_directly  # noqa: PLC0415  numpy comes with it

    file = _file_on_drive(config)
    choice = choose_reader(config.io, config.data_dir)
    if file is None:
        why = f"{choice.why}; not tried: there is no file of 1 MiB on the data directory's drive yet"
        unknown = Finding("disk_read", "not measured", "no file of 1 MiB on the data directory's drive yet")
        return [Finding("io", reader_name(choice.backend), why), unknown]
    if choice.backend == "buffered":
        return [Finding("io", reader_name("buffered"), choice.why), _disk_bandwidth(file, use_direct=False)]
    if not reads_directly(file):
        why = f"the drive of {config.data_dir} refuses direct reads"
        return [Finding("io", reader_name("buffered"), why), _disk_bandwidth(file, use_direct=False)]
    return _tried(choice, file)


def _tried(choice: ReaderChoice, file: Path) -> list[Finding]:
    from edgekv_storage import judge_trial, reader_name, try_readers  # noqa: PLC0415  as in _disk

    trial = try_readers(file)
    why, is_fine = choice.why, True
    if choice.backend == "uring" and not trial.works:
        why, is_fine = f"{why}, but it cannot be used: {trial.reason}", False
    elif choice.is_unknown:
        why += f"; tried now, {reader_name(judge_trial(trial).backend)} would be chosen"
    uring = f"{trial.uring / 1e6:.0f} MB/s by io_uring" if trial.works else "io_uring cannot be used"
    value = f"{uring}, {trial.pread / 1e6:.0f} MB/s by threads"
    how = f"direct, random 256 KiB, 16 in flight: {file}"
    if not trial.works:
        how = f"{trial.reason}; {how}"
    return [
        Finding("io", reader_name(choice.backend), why, is_fine=is_fine),
        Finding("disk_read", value, how),
    ]


def _file_on_drive(config: Config) -> Path | None:
    """The largest segment, else the model file where it lies on the data directory's drive."""
    folder = config.data_dir
    sizes = {path: path.lstat().st_size for path in folder.glob("seg-*.kv") if path.is_file()}
    best = max(sizes, key=sizes.__getitem__, default=None)
    if best is not None and sizes[best] >= DISK_READ_BYTES:
        return best
    drive = next(path for path in (folder, *folder.parents) if path.exists()).stat().st_dev
    try:
        model = resolve_model(config.model, folder)
    except EdgeKVError:  # its own finding says why
        return None
    status = model.stat()
    return model if status.st_dev == drive and status.st_size >= DISK_READ_BYTES else None


def _disk_bandwidth(path: Path, *, use_direct: bool) -> Finding:
    """Reads of 1 MiB, one at a time, as the store would (writing would wear the drive)."""
    fd = os.open(path, os.O_RDONLY | (getattr(os, "O_DIRECT", 0) if use_direct else 0))
    try:
        last = os.fstat(fd).st_size - DISK_READ_BYTES
        buffer = _aligned_buffer(DISK_READ_BYTES)
        began = time.perf_counter()
        offset = total = 0
        while time.perf_counter() - began < MEASURE_S:
            total += os.preadv(fd, [buffer], offset)
            offset = offset + DISK_READ_BYTES if offset + DISK_READ_BYTES <= last else 0
        rate = total / (time.perf_counter() - began)
    finally:
        os.close(fd)
    how = "direct" if use_direct else "through the page cache, so perhaps from memory"
    return Finding("disk_read", f"{rate / 1e6:.0f} MB/s", f"{how}, 1 MiB serial: {path}")


def _aligned_buffer(size: int) -> memoryview:
    """Direct I/O needs page-aligned memory; an anonymous mapping is."""
    return memoryview(mmap.mmap(-1, size))


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
