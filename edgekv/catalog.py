"""Which model files this machine has, for front ends that let a person choose. Opens none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv.models.catalog import FoundModel, find_models

if TYPE_CHECKING:
    from edgekv.config import Config

__all__ = ["FoundModel", "found_models"]


def found_models(config: Config) -> list[FoundModel]:
    """All that `edgekv models` lists; `.path` is what `Runtime(model=...)` takes."""
    return find_models([config.data_dir / "models"])
