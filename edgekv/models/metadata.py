"""Typed, bounded reading of metadata values; each wrong one gives one error that names file and key.

Knows the shapes values come in (GGUF lets any key hold anything); not what a key is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekv.errors import ModelLoadError
from edgekv.models.gguf import StringArray

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekv.models.gguf import Value


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of `path`; numeric keys are given without `prefix` (the architecture and a dot)."""

    path: Path
    values: Mapping[str, Value]
    prefix: str

    def error(self, defect: str, remedy: str = "get the file again from where it came") -> ModelLoadError:
        """The error to raise for `defect`."""
        return ModelLoadError(f"{self.path}: {defect}; {remedy}")

    def integer(self, key: str, least: int, most: int, *, default: int | None = None) -> int:
        """A whole number from `least` to `most`; a missing key without `default` is an error."""
        return self._bounded(key, self.values.get(self.prefix + key, default), least, most)

    def uniform_integer(self, key: str, least: int, most: int, *, default: int | None = None) -> int:
        """Like `integer`, also where the file gives one number per layer, which must all be equal."""
        value = self.values.get(self.prefix + key, default)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            if (value != value[0]).any():
                raise self.error(f"{self.prefix}{key} differs between layers", "edgekv runs uniform layers")
            value = int(value[0])
        return self._bounded(key, value, least, most)

    def _bounded(self, key: str, value: Value | None, least: int, most: int) -> int:
        if value is None:
            raise self.error(f"{self.prefix}{key} is missing")
        if type(value) is not int or not least <= value <= most:
            shown = value if isinstance(value, int | float) else type(value).__name__
            raise self.error(f"{self.prefix}{key} is {shown}, not a number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None, *, above: float | None = None) -> float:
        """A finite number, greater than `above` if given; a missing key without `default` is an error."""
        value = self.values.get(self.prefix + key, default)
        if value is None:
            raise self.error(f"{self.prefix}{key} is missing")
        if (
            not isinstance(value, int | float)
            or not math.isfinite(value)
            or (above is not None and value <= above)
        ):
            shown = value if isinstance(value, int | float) else type(value).__name__
            raise self.error(f"{self.prefix}{key} is {shown}, not a sensible number")
        return float(value)

    def optional_integer(self, full_key: str) -> int | None:
        """A whole number, or None where the key is missing or holds something else."""
        value = self.values.get(full_key)
        return value if type(value) is int else None

    def text(self, full_key: str) -> str | None:
        """A string, or None where the key is missing; anything else is an error."""
        value = self.values.get(full_key)
        if value is not None and not isinstance(value, str):
            raise self.error(f"{full_key} is not a string")
        return value

    def length(self, full_key: str) -> int:
        """How many strings the array `full_key` has; at least one."""
        value = self.values.get(full_key)
        if not isinstance(value, StringArray) or not len(value):
            raise self.error(f"{full_key} is missing: the file holds no vocabulary")
        return len(value)

    def token_id(self, name: str) -> int | None:
        """The special token id `name`, or None where the file gives none or one outside the vocabulary."""
        value = self.optional_integer(f"tokenizer.ggml.{name}_token_id")
        return value if value is not None and 0 <= value < self.length("tokenizer.ggml.tokens") else None
