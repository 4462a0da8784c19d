"""The model as the conversation layer sees it: text in, ids out, and who it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
