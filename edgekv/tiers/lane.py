"""Copies that run beside computation: a CUDA stream of their own, and nothing at all on the CPU."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


class CopyLane:
    """Orders pool copies against the kernels that read the pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Copies issued inside start only when the computation issued so far is done with their target."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def computation_waits(self) -> None:
        """Kernels issued from now on see every copy issued so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def host_waits(self) -> None:
        """Block until every copy issued so far is done (before the host reads or reuses its memory)."""
        if self._stream is not None:
            self._stream.synchronize()
