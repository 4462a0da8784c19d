"""One OpenMP runtime per process: the one torch already brought.

A second one (the system's libgomp) would keep its own threads spinning on the same cores. The extension is
therefore compiled with -fopenmp but not linked with it; its symbols are found in torch's library, which is
made global here first. Knows the loader. Does not know what the threads compute.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import torch

_NAME = re.compile(r"lib(gomp|iomp5|omp)[^/]*\.so[^/]*$")


def _mapped_libraries() -> list[str]:
    """Paths of the OpenMP libraries mapped into this process, torch's own first."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if _NAME.search(line))
    return sorted(paths, key=lambda path: "torch" not in path)


def share_openmp() -> str:
    """Make torch's OpenMP symbols global and return the library's file name; raises OSError if none."""
    assert torch.get_num_threads() >= 1  # torch is loaded, and so is the library it brought
    if sys.platform != "linux":
        raise OSError(f"native kernels are built for Linux, not for {sys.platform}")
    for path in _mapped_libraries():
        library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        if hasattr(library, "GOMP_parallel"):
            return Path(path).name
    raise OSError("torch brought no OpenMP library with GOMP_parallel")
