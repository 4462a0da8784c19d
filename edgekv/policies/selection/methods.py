"""The methods by name, as `--selection` calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv.policies.selection.cascade import Cascade
from edgekv.policies.selection.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv.policies.selection.selector import Selector

SELECTORS: dict[str, Callable[[], Selector]] = {"cascade": Cascade, "window": Window}
