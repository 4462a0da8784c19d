"""Reading little-endian values from a mapped file without ever passing its end.

Knows numbers, strings and arrays of GGUF and the most of each that is accepted; not what they mean. Sizes are
compared with the bytes that are left, and with those limits, before anything is allocated or looped over.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    from numpy.typing import NDArray

MAX_KEY_BYTES = 1 << 16
MAX_STRING_BYTES = 1 << 24
MAX_ELEMENTS = 1 << 22  # of all arrays together: bounds the time a header can cost

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, np.dtype] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


class HeaderError(ValueError):
    """What is wrong with a header; whoever knows the file's name turns it into a ModelLoadError."""


class StringArray(Sequence[str]):
    """An array of strings that stays in the file: one 8-byte place per string is all it keeps in memory."""

    __slots__ = ("_places", "_view")

    def __init__(self, view: mmap, places: array[int]) -> None:
        self._view = view
        self._places = places  # where each string's length stands

    def __len__(self) -> int:
        return len(self._places)

    def raw(self, index: int) -> bytes:
        """The bytes of string `index`."""
        place = self._places[index]
        start = place + 8
        return self._view[start : start + _U64.unpack_from(self._view, place)[0]]

    def raw_all(self) -> Iterator[bytes]:
        """The bytes of every string, in order."""
        return map(self.raw, range(len(self._places)))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode("utf-8", errors="replace")


Value = int | float | bool | str | StringArray | np.ndarray


class Cursor:
    """A position in the mapped bytes that never moves past their end."""

    __slots__ = ("elements", "pos", "size", "view")

    def __init__(self, view: mmap) -> None:
        self.view = view
        self.pos = 0
        self.size = len(view)
        self.elements = 0

    def take(self, num_bytes: int, what: str) -> int:
        """Step over `num_bytes`; returns where they start. All other reads come through here."""
        start = self.pos
        if num_bytes > self.size - start:
            raise HeaderError(f"it ends at byte {self.size}, inside {what}")
        self.pos = start + num_bytes
        return start

    def u32(self, what: str) -> int:
        """The next four bytes as a number."""
        value: int = _U32.unpack_from(self.view, self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """The next eight bytes as a number."""
        value: int = _U64.unpack_from(self.view, self.take(8, what))[0]
        return value

    def count(self, what: str, limit: int, *, least_bytes: int) -> int:
        """A number of things of at least `least_bytes` each: refused where they could not lie in the file."""
        value = self.u64(what)
        if value > limit:
            raise HeaderError(f"{what} is {value}, more than the {limit} edgekv accepts")
        if value * least_bytes > self.size - self.pos:
            raise HeaderError(f"{what} is {value}, more than the file's {self.size} bytes can hold")
        return value

    def text(self, what: str, limit: int) -> bytes:
        """The next string, of at most `limit` bytes."""
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise HeaderError(f"{what} is {length} bytes long, more than the {limit} edgekv accepts")
        start = self.take(length, what)
        return self.view[start : start + length]

    def name(self, what: str, limit: int) -> str:
        """The next string, which has to be UTF-8: two names must never look like one."""
        try:
            return self.text(what, limit).decode("utf-8")
        except UnicodeDecodeError:
            raise HeaderError(f"{what} is not UTF-8") from None

    def value(self, key: str) -> Value:
        """The next typed value; arrays of strings stay in the mapping."""
        what = f"the value of {key!r}"
        code = self.u32(f"the type of {key!r}")
        if code == _STRING:
            return self.text(what, MAX_STRING_BYTES).decode("utf-8", errors="replace")
        if code == _ARRAY:
            return self._array(key)
        if code not in _SCALARS:
            raise HeaderError(f"{what} has the unknown type {code}")
        dtype = _SCALARS[code]
        scalar: int | float = np.frombuffer(self.view, dtype, 1, self.take(dtype.itemsize, what))[0].item()
        return bool(scalar) if code == _BOOL else scalar

    def _array(self, key: str) -> StringArray | NDArray[np.generic]:
        what = f"the array {key!r}"
        code = self.u32(f"the element type of {what}")
        if code == _ARRAY:
            raise HeaderError(f"{what} holds arrays, which no model file needs")
        if code != _STRING and code not in _SCALARS:
            raise HeaderError(f"{what} has the unknown element type {code}")
        width = 8 if code == _STRING else _SCALARS[code].itemsize
        count = self.count(f"the length of {what}", MAX_ELEMENTS - self.elements, least_bytes=width)
        self.elements += count
        if code == _STRING:
            return StringArray(self.view, self._string_places(count, what))
        stored = np.frombuffer(self.view, _SCALARS[code], count, self.take(count * width, what))
        return (
            stored != 0 if code == _BOOL else stored.copy()
        )  # a view would keep the file from being unmapped

    def _string_places(self, count: int, what: str) -> array[int]:
        """Walk `count` strings without touching their text: the loop that decides how fast a header opens."""
        view, pos, last = self.view, self.pos, self.size - 8
        length_at = _U64.unpack_from
        places = array("Q", bytes(8 * count))
        for index in range(count):
            if pos > last:
                raise HeaderError(f"it ends at byte {self.size}, inside {what}")
            places[index] = pos
            length = length_at(view, pos)[0]
            if length > MAX_STRING_BYTES:
                raise HeaderError(
                    f"string {index} of {what} is {length} bytes long, more than edgekv accepts"
                )
            pos += 8 + length
        if pos > self.size:
            raise HeaderError(f"it ends at byte {self.size}, inside {what}")
        self.pos = pos
        return places
