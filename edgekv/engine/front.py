"""The model as the conversation layer sees it: text in, ids out, and who it is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv.errors import TemplateError

if TYPE_CHECKING:
    from edgekv.models.template import ChatTemplate
    from edgekv.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelFront:
    """Tokenizer, template and identity of the loaded model. `context_length` is its trained window, tokens."""

    tokenizer: Tokenizer
    template: ChatTemplate
    fingerprint: bytes
    context_length: int
    name: str

    def warm_up(self) -> None:
        """Start the template's process now; what its template does wrong is told when a person uses it."""
        with suppress(TemplateError):
            self.template.next_turn([], True, "hello")

    def close(self) -> None:
        """End the template's process and free the vocabulary."""
        self.template.close()
        self.tokenizer.close()


class NoText:
    """Stands for a tokenizer where only token ids matter: every token spells nothing."""

    adds_space_prefix: bool = False

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """No bytes."""
        del token_id, special
        return b""


@dataclass(frozen=True, slots=True)
class IdsFront:
    """A model used by token ids alone (benchmarks on a machine without the tokenizer library)."""

    fingerprint: bytes
    context_length: int
    name: str
    tokenizer: NoText = field(default_factory=NoText)

    def warm_up(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        """Nothing to free."""
