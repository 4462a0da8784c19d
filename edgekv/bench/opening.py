"""`bench open`: how long opening a big store takes, after a clean close and after a kill, in a fresh process.

The store is made with real headers, tables, footers and index; the KV itself are holes (nothing reads it). Its
keys follow from the conversations' ids: this is a measurement, not a secret. `python -m edgekv.bench.opening` is
the fresh process.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekv.bench.page_cache import drop_page_cache
from edgekv.bench.report import Labels
from edgekv_storage import LEAF_TOKENS, ConversationKey, Layout, Store
from edgekv_storage.io.disk import OsDisk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.bench.report import Row
    from edgekv_storage.io.disk import Buffer

SIZE_BYTES = 10_000_000_000
TEXT = "holes for KV"
_LAYOUT = Layout(30, 12288, 0, b"opening".ljust(32))  # of the small bundled model
_CONVERSATIONS = 16
_EXTENT_LEAVES = 16
_HOLE_BYTES = 64 << 10


class _Keys:
    """Found again by every process."""

    @staticmethod
    def need(sequence_id: bytes) -> ConversationKey:
        secret = hashlib.sha256(sequence_id).digest()
        return ConversationKey(secret, secret[:16])

    find = need


class _SparseDisk(OsDisk):
    """Writes small pieces (headers, tables, footers) and leaves holes for large ones (leaves)."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        total = sum(len(memoryview(b).cast("B")) for b in buffers)
        if total < _HOLE_BYTES:
            return super().pwritev(fd, buffers, offset)
        if os.fstat(fd).st_size < offset + total:
            os.ftruncate(fd, offset + total)
        return total

    def reserve(self, fd: int, offset: int, num_bytes: int) -> bool:
        del fd, offset, num_bytes
        return False  # reserved blocks would not be holes


def measure(folder: Path, num_bytes: int, runs: int) -> list[Row]:
    """Builds the store in `folder`, then opens it `runs` times after a close and after a kill."""
    _run("build", folder, num_bytes, 0)
    clean = [_timed_open(folder) for _ in range(runs)]
    killed = []
    for _ in range(runs):
        _run("kill", folder, 1 << 30, signal.SIGKILL)
        killed.append(_timed_open(folder))
    labels = Labels(attention=None, text=TEXT)
    size = sum(file.stat().st_size for file in folder.glob("seg-*.kv"))
    return [
        labels.measured("store_open_s", "seconds", clean, better="lower"),
        labels.measured("store_open_after_kill_s", "seconds", killed, better="lower"),
        labels.row("store_bytes", "bytes", ours=size),
        labels.row("store_segments", "segments", ours=len(list(folder.glob("seg-*.kv")))),
    ]


def _timed_open(folder: Path) -> float:
    drop_page_cache(folder)
    return float(_run("open", folder, 0, 0))


def _run(task: str, folder: Path, num_bytes: int, ends_with: int) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "edgekv.bench.opening", task, str(folder), str(num_bytes)]
    done = subprocess.run(  # noqa: S603  our own interpreter and module
        command, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -ends_with, f"the measuring process ended with code {done.returncode}"
    return done.stdout


def _open(folder: Path, *, sparse: bool) -> Store:
    disk = _SparseDisk() if sparse else None
    return Store.open(folder, _LAYOUT, quota_bytes=1 << 50, free_floor_bytes=0, keys=_Keys(), disk=disk)


def _grow(store: Store, num_bytes: int, first: int) -> None:
    """Appends to all conversations in turn; ids from `first` on, so that no two leaves have one key."""
    column = _LAYOUT.num_layers * _LAYOUT.leaf_bytes
    payload = [bytes(_EXTENT_LEAVES * _LAYOUT.leaf_bytes)] * _LAYOUT.num_layers
    parents: dict[int, bytes | None] = {}
    for number in range(num_bytes // (column * _EXTENT_LEAVES)):
        chat = number % _CONVERSATIONS
        sequence_id = chat.to_bytes(16, "little")
        at = first + number * _EXTENT_LEAVES * LEAF_TOKENS
        ids = np.arange(at, at + _EXTENT_LEAVES * LEAF_TOKENS, dtype=np.int32)
        keys = store.leaf_keys(sequence_id, b"exact", ids, parents.get(chat))
        store.append(sequence_id, keys, parents.get(chat), ids, payload)
        parents[chat] = keys[-1]


def main(task: str, folder: Path, num_bytes: int) -> None:
    """`build`, `open` (prints seconds) or `kill` (ends by SIGKILL while it writes)."""
    if task == "open":
        before = time.perf_counter()
        store = _open(folder, sparse=False)
        sys.stdout.write(f"{time.perf_counter() - before}\n")
        store.close()
        return
    with _open(folder, sparse=True) as store:
        _grow(store, num_bytes, time.monotonic_ns() % (1 << 28))
        if task == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
