"""Which form of the kernels runs: chosen once per device kind, forced on request, told by `describe`.

Knows how to load the compiled extension beside torch's OpenMP library. Does not know any operation.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from edgekv_kernels.openmp import share_openmp

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Backend = Literal["auto", "native", "reference", "triton"]
Form = Literal["native", "reference", "triton"]
BACKENDS: tuple[Backend, ...] = ("auto", "native", "reference", "triton")


def _load_native() -> tuple[Any, str]:
    """The compiled module and the name of its instruction set, or (None, why it is not used)."""
    if importlib.util.find_spec("edgekv_kernels._native") is None:
        return None, "extension not built; reinstall edgekv where a C compiler is present"
    try:
        openmp = share_openmp()
        module = importlib.import_module("edgekv_kernels._native")
    except (ImportError, OSError) as error:
        return None, f"extension does not load: {error}"
    return module, f"{module.isa()}, threads by {openmp}"


native, _native_note = _load_native()
_has_triton = importlib.util.find_spec("triton") is not None
_backend: Backend = "auto"
_cpu_form: Form = "reference"
_cuda_form: Form = "reference"
_announced = False


def triton_form(name: str) -> Any:
    """The module `edgekv_kernels.triton.<name>`, imported at its first use: Triton is optional and slow to load."""
    return importlib.import_module(f"edgekv_kernels.triton.{name}")


def form_of(x: torch.Tensor) -> Form:
    """The form that operations on `x`'s device run in."""
    if x.is_cuda:
        return _cuda_form
    if _cpu_form == "reference":
        _announce_fallback()
    return _cpu_form


def cpu_form() -> Form:
    """The form that operations on CPU tensors run in."""
    return _cpu_form


def _announce_fallback() -> None:
    """Warn once, with the reason, when CPU work runs on the slow reference form without being asked to."""
    global _announced  # noqa: PLW0603 - once per process
    if native is None and _backend == "auto" and not _announced:
        _announced = True
        warnings.warn(f"slow CPU kernels in use: {_native_note}", RuntimeWarning, stacklevel=4)


def use(backend: Backend) -> None:
    """Choose the form of every later call; raises ValueError or RuntimeError when it cannot be had.

    "auto": native on the CPU and Triton on CUDA, each falling back to the reference. "native" governs CPU
    tensors only. "triton" on CPU tensors needs TRITON_INTERPRET=1.
    """
    global _backend, _cpu_form, _cuda_form  # noqa: PLW0603 - the one choice of the process
    if backend not in BACKENDS:
        raise ValueError(f"unknown kernel backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "native" and native is None:
        raise RuntimeError(f"native kernels: {_native_note}")
    if backend == "triton" and not _has_triton:
        raise RuntimeError("triton is not installed; install it or choose another kernel backend")
    _backend = backend
    _cuda_form = "reference" if backend == "reference" or not _has_triton else "triton"
    automatic: Form = "reference" if native is None else "native"
    _cpu_form = backend if backend in ("reference", "triton") else automatic


@contextmanager
def forced(backend: Backend) -> Iterator[None]:
    """`use(backend)` inside the block only; for tests and comparisons, not for threads at work."""
    before = _backend
    use(backend)
    try:
        yield
    finally:
        use(before)


def describe() -> dict[str, str]:
    """What runs where and why: `cpu`, `cuda`, `native` (instruction set or why not), `triton`, `backend`."""
    return {
        "backend": _backend,
        "cpu": _cpu_form,
        "cuda": _cuda_form,
        "native": _native_note,
        "triton": "installed" if _has_triton else "not installed",
    }


use("auto")
