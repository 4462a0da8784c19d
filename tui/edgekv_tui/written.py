"""What a person has written and not sent yet, long pastes folded. Knows text only; the prompt shows it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Written:
    """`text` as it is looked at; `pastes` are the texts that its marks stand for. A mark's number is given once."""

    text: str = ""
    pastes: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> str:
        """What was written, folded pastes unfolded."""
        if not self.pastes:
            return self.text
        marks = "|".join(
            map(re.escape, self.pastes)
        )  # all at once: a paste may have the mark of another in it
        return re.sub(marks, lambda mark: self.pastes[mark[0]], self.text)

    def before(self, other: Written) -> Written:
        """Both, one below the other."""
        text = f"{self.text}\n{other.text}" if other.text else self.text
        return Written(text, {**self.pastes, **other.pastes})
