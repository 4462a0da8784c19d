"""The methods by name, as `--selection` calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv.policies.selection.cascade import Cascade
from edgekv.policies.selection.heavy import Heavy
from edgekv.policies.selection.leoam import Leoam
from edgekv.policies.selection.oracle import Oracle
from edgekv.policies.selection.quest import Quest
from edgekv.policies.selection.sentence import Sentence
from edgekv.policies.selection.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv.policies.selection.selector import Selector

SELECTORS: dict[str, Callable[[], Selector]] = {
    "cascade": Cascade,
    "leoam": Leoam,
    "quest": Quest,
    "heavy": Heavy,
    "sentence": Sentence,
    "window": Window,
    "oracle": Oracle,
}
