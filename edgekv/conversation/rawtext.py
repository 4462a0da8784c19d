"""Text that goes on, without a chat template: what a completion endpoint or a base model needs.

Knows the tokenizer, one sequence and how to ask for a generation. Keeps no text; what it read stays in memory,
so that a text which begins like the last one is not read again.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Unpack

from edgekv.config import ANSWER_FIELDS
from edgekv.conversation.asking import ask, room_for, sampling_of
from edgekv.conversation.library import SEQUENCE_ID_BYTES
from edgekv.conversation.stream import CancelToken, Stream
from edgekv.engine.request import Request

if TYPE_CHECKING:
    from edgekv.config import AnswerOptions, Config
    from edgekv.conversation.asking import Executor
    from edgekv.conversation.render import FrontLike


class RawText:
    """One private sequence that continues texts. Safe to use from any thread."""

    def __init__(self, *, front: FrontLike, config: Config, executor: Executor) -> None:
        self._sequence_id = os.urandom(SEQUENCE_ID_BYTES)
        self._front = front
        self._config = config
        self._executor = executor

    def stream(
        self, text: str, *, cancel: CancelToken | None = None, **options: Unpack[AnswerOptions]
    ) -> Stream:
        """Continue `text` as it stands; what looks like a control token in it is mere letters.

        Raises:
            ContextOverflow: under exact attention, when it does not fit the model's trained window.
        """
        submitted_at = time.perf_counter()
        self._executor.check_usable()
        config = self._config.replace(options, only=ANSWER_FIELDS)
        context = self._front.tokenizer.encode_pieces([(text, False)], add_bos=True)
        if not context:  # a model without BOS has nothing to go on from
            context = self._front.tokenizer.encode_pieces([("\n", False)])
        room = room_for(len(context), config, self._front.context_length)
        request = Request(
            sequence_id=self._sequence_id,
            token_ids=context,
            durable=False,
            sampling=sampling_of(config),
            max_tokens=min(config.max_tokens, room),
            stop=config.stop,
            stop_ids=self._front.tokenizer.end_ids,
            submitted_at=submitted_at,
        )
        generation = ask(request, config, self._executor, token=cancel, commit=lambda result: result)
        stream = Stream(generation)
        generation.queued()
        return stream
