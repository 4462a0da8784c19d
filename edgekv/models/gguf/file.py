"""A GGUF file on disk: opened once, mapped read-only, identified by its content.

Knows paths, the mapping and the fingerprint. Does not know what the tensors are for.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import numpy as np
import xxhash

from edgekv.errors import ModelLoadError
from edgekv.models.gguf.cursor import HeaderError, Value
from edgekv.models.gguf.header import Header, TensorInfo, read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

WHOLE_FILE_BYTES = 128 << 20
SAMPLE_BYTES = 4096
SAMPLES_PER_TENSOR = 8
_IDENTITY = b"edgekv model fingerprint 1"


class GGUFFile:
    """A checked GGUF file. Tensors are views of its mapping, so it must not be cut short while open."""

    def __init__(self, path: Path, view: mmap.mmap, header: Header) -> None:
        self.path = path
        self.version = header.version
        self.metadata: Mapping[str, Value] = header.metadata
        self.tensors: Mapping[str, TensorInfo] = header.tensors
        self.data_offset = header.data_offset
        self.file_bytes = len(view)
        self._view = view

    def tensor_bytes(self, name: str) -> NDArray[np.uint8]:
        """The tensor's stored bytes `[num_bytes]`, a zero-copy read-only view of the mapped file.

        Raises:
            KeyError: no tensor has that name.
        """
        info = self.tensors[name]
        return np.frombuffer(self._view, np.uint8, info.num_bytes, info.offset)

    def fingerprint(self) -> bytes:
        """32 bytes that name the model's content: header (tokenizer, rope, shapes), size, and tensor data.

        Data up to 128 MiB is hashed whole. Above that, eight 4 KiB samples spread over every tensor are: they
        hold thousands of weights of each tensor, so a fine-tune, an adapter merged into only some matrices, a
        new imatrix or another quantization changes them, at a cost bounded by the number of tensors. A change
        confined to the gaps (a flipped bit of an 8 GB file) is not seen; nobody can gain by forging one, for
        the fingerprint only guards a person's own cache against being used with another model. Neither the
        path nor the time stamps count: a file that was moved or copied keeps its conversations.
        """
        digest = hashlib.blake2b(_IDENTITY, digest_size=32)
        with memoryview(self._view) as whole:
            digest.update(len(whole).to_bytes(8, "little"))
            digest.update(xxhash.xxh3_128_digest(whole[: self.data_offset]))
            if len(whole) - self.data_offset <= WHOLE_FILE_BYTES:
                digest.update(xxhash.xxh3_128_digest(whole[self.data_offset :]))
                return digest.digest()
            for info in self.tensors.values():
                digest.update(_sample(whole[info.offset : info.offset + info.num_bytes]))
        return digest.digest()

    def close(self) -> None:
        """Unmap the file unless views of it are still in use; then the last of them does."""
        with suppress(BufferError):
            self._view.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_gguf(path: Path) -> GGUFFile:
    """Open and check a GGUF file, of version 2 or 3, little-endian; nothing of it is loaded yet.

    Raises:
        ModelLoadError: one line that names the file, its defect and what to do.
    """
    view = _map(path)
    try:
        return GGUFFile(path, view, read_header(view))
    except HeaderError as defect:
        raise ModelLoadError(f"{path}: {defect}; get the file again from where it came") from None


def _map(path: Path) -> mmap.mmap:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: no such file; `edgekv models` lists the models found") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelLoadError(
            f"{path}: cannot be opened ({reason}); check the path and its permissions"
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelLoadError(f"{path}: is not a regular file; give the path of a .gguf file")
        if status.st_size == 0:
            raise ModelLoadError(f"{path}: is empty; get the file again from where it came")
        return mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ)
    except OSError as error:
        raise ModelLoadError(
            f"{path}: cannot be mapped ({error.strerror}); copy it to a local disk"
        ) from None
    finally:
        os.close(descriptor)


def _sample(data: memoryview) -> bytes:
    if len(data) <= SAMPLES_PER_TENSOR * SAMPLE_BYTES:
        return xxhash.xxh3_128_digest(data)
    digest = xxhash.xxh3_128()
    last = len(data) - SAMPLE_BYTES
    for index in range(SAMPLES_PER_TENSOR):
        start = last * index // (SAMPLES_PER_TENSOR - 1)
        digest.update(data[start : start + SAMPLE_BYTES])
    return digest.digest()
