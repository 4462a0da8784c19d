"""The GGUF header: bytes in, checked metadata and tensor table out.

Knows the layout of versions 2 and 3 and trusts nothing it reads: counts, dimensions, offsets, alignment and
the places of tensors are checked here, lengths and nesting in `cursor`. Does not know what any key means but
`general.alignment`.

    magic "GGUF" | u32 version | u64 tensors | u64 keys | keys: string, u32 type, value | tensors: string,
    u32 dims, u64 x dims, u32 type, u64 offset | zeros to the alignment | tensor data
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from edgekv.models.gguf.cursor import MAX_KEY_BYTES, Cursor, HeaderError, Value
from edgekv.models.gguf.ggml_types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from mmap import mmap

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 63  # ggml keeps names in 64 bytes, the last one zero
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `shape` is in ggml's order, ne0 first; `offset` is from the file's start."""

    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLType
    offset: int
    num_bytes: int

    @property
    def numpy_shape(self) -> tuple[int, ...]:
        """The same shape in numpy's order: rows first, the contiguous dimension last."""
        return self.shape[::-1]


@dataclass(frozen=True, slots=True)
class Header:
    """A header that passed every check. `data_offset` is where tensor data begins."""

    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    data_offset: int


def read_header(view: mmap) -> Header:
    """Parse and check the header of the mapped file.

    Raises:
        HeaderError: naming what is wrong, for any file that is not a complete, sound GGUF of version 2 or 3.
    """
    cursor = Cursor(view)
    version = _read_version(cursor)
    num_tensors = cursor.count("the number of tensors", MAX_TENSORS, least_bytes=24)
    num_keys = cursor.count("the number of metadata keys", MAX_KEYS, least_bytes=13)
    metadata: dict[str, Value] = {}
    for index in range(num_keys):
        key = cursor.name(f"metadata key {index}", MAX_KEY_BYTES)
        if key in metadata:
            raise HeaderError(f"metadata key {key!r} appears twice")
        metadata[key] = cursor.value(key)
    alignment = _alignment(metadata)
    relative = [_read_tensor(cursor, index, alignment) for index in range(num_tensors)]
    data_offset = -(-cursor.pos // alignment) * alignment
    if num_tensors and data_offset > cursor.size:
        raise HeaderError(
            f"it ends before its tensor data, at byte {cursor.size} of a header of {data_offset}"
        )
    tensors = _place_tensors(relative, data_offset, cursor.size)
    return Header(version, metadata, tensors, data_offset)


def _read_version(cursor: Cursor) -> int:
    magic = cursor.view[: cursor.take(4, "its first four bytes") + 4]
    if magic != b"GGUF":
        raise HeaderError(f"it is not a GGUF file (it begins with {magic!r})")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0:
        raise HeaderError("it is a big-endian GGUF file, and only little-endian ones are supported")
    if version not in (2, 3):
        raise HeaderError(f"it has GGUF version {version}, and versions 2 and 3 are supported")
    return version


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        shown = value if isinstance(value, int | float) else type(value).__name__
        raise HeaderError(f"general.alignment is {shown}, not a power of two from 8 to {MAX_ALIGNMENT}")
    return value


def _read_tensor(cursor: Cursor, index: int, alignment: int) -> TensorInfo:
    """One row of the tensor table, its `offset` still relative to the tensor data."""
    name = cursor.name(f"the name of tensor {index}", MAX_NAME_BYTES)
    what = f"the shape of tensor {name!r}"
    num_dims = cursor.u32(what)
    if not 1 <= num_dims <= MAX_DIMS:
        raise HeaderError(f"tensor {name!r} has {num_dims} dimensions, not 1 to {MAX_DIMS}")
    shape = tuple(cursor.u64(what) for _ in range(num_dims))
    code = cursor.u32(f"the type of tensor {name!r}")
    offset = cursor.u64(f"the offset of tensor {name!r}")
    if code not in GGMLType._value2member_map_:
        raise HeaderError(f"tensor {name!r} has the ggml type {code}, which edgekv does not know")
    ggml_type = GGMLType(code)
    num_elements = prod(shape)
    if not 0 < num_elements < 1 << 63:
        raise HeaderError(f"tensor {name!r} has the impossible shape {list(shape)}")
    if shape[0] % ggml_type.block_elements:
        raise HeaderError(f"rows of tensor {name!r} ({shape[0]}) are no multiple of a {ggml_type.name} block")
    if offset % alignment:
        raise HeaderError(f"tensor {name!r} lies at offset {offset}, which is not aligned to {alignment}")
    num_bytes = num_elements // ggml_type.block_elements * ggml_type.block_bytes
    return TensorInfo(name, shape, ggml_type, offset, num_bytes)


def _place_tensors(relative: Sequence[TensorInfo], data_offset: int, size: int) -> dict[str, TensorInfo]:
    """Make offsets absolute; refuse repeated names, bytes outside the file, bytes shared by two tensors.

    A file may end right after its last tensor: the padding that follows carries nothing.
    """
    placed: dict[str, TensorInfo] = {}
    for info in relative:
        if info.name in placed:
            raise HeaderError(f"tensor {info.name!r} appears twice")
        start = data_offset + info.offset
        if start + info.num_bytes > size:
            raise HeaderError(
                f"it ends at byte {size}, before tensor {info.name!r} does ({start + info.num_bytes})"
            )
        placed[info.name] = TensorInfo(info.name, info.shape, info.ggml_type, start, info.num_bytes)
    in_order = sorted(placed.values(), key=lambda info: info.offset)
    for before, after in pairwise(in_order):
        if before.offset + before.num_bytes > after.offset:
            raise HeaderError(f"tensors {before.name!r} and {after.name!r} overlap")
    return placed
