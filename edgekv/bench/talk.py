"""A conversation through the public API: stored by one process, answered by another.

Knows how long a message has to be for a context of so many tokens; keeps no figures.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv.bench.inside import LeafBytes, decode_ids, engine_of, message_tokens, store_of
from edgekv.bench.page_cache import drop_page_cache
from edgekv.errors import ConfigError
from edgekv.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edgekv.bench.setting import Setting
    from edgekv.config import Config
    from edgekv.conversation.conversation import Conversation

NAME = "bench"
QUESTION = "{}: what happened next?"  # the number first: runs differ from the first token of the text on
ROOM = 256  # tokens for the new turn and what the template puts around it
TURN_TOKENS = 1024
_TRIES = 12


@dataclass(frozen=True, slots=True)
class Resumed:
    """One answer's first token: seconds, tokens whose KV was there, bytes read (of leaves, and in all)."""

    ttft_s: float
    reused_tokens: int
    bytes_read: int
    leaf_bytes_read: int


def store(setting: Setting, data_dir: Path, ids: Sequence[int]) -> int:
    """Say the text of `ids` in messages of about 1,024 tokens, the last cut so that the context has their number of
    tokens, and keep it.

    Returns the tokens of the context up to the last answer (of one token). They are the number asked for but
    where no cut of the text gives it exactly; then a few more.
    """
    with _runtime(setting, data_dir, len(ids)) as runtime:
        chat, said = runtime.conversation(NAME), 0
        while len(ids) - chat.num_tokens() > 2 * TURN_TOKENS:
            chat.send(decode_ids(runtime, ids[said : said + TURN_TOKENS]), max_tokens=1, temperature=0.0)
            said += TURN_TOKENS
        text = _cut(runtime, chat, ids[said:], len(ids) - chat.num_tokens())
        return chat.send(text, max_tokens=1, temperature=0.0).usage.prompt_tokens


def resume(setting: Setting, data_dir: Path, context: int, number: int, *, drop: bool) -> Resumed:
    """Open a Runtime, warm it with a message that is not kept, and time the stored conversation's next answer.

    Afterwards the conversation is put back to where it was. `number` makes the message differ from those of
    other runs, so that what they stored is of no use to this one (but for the leaf in which the message begins,
    where the context does not end with a leaf). `drop`: the page cache is dropped first.
    """
    if drop:
        drop_page_cache(data_dir)
    with _runtime(setting, data_dir, context) as runtime:
        runtime.conversation(private=True).send(
            "Hello", max_tokens=1, temperature=0.0
        )  # ends when it is warm
        counters = store_of(engine_of(runtime))
        leaves = LeafBytes(counters)
        before = counters.stats().bytes_read
        if drop:
            drop_page_cache(data_dir)  # opening read some of it
        start = time.perf_counter()
        chat = runtime.conversation(NAME)
        result = chat.send(QUESTION.format(number), submitted_at=start, max_tokens=1, temperature=0.0)
        read = counters.stats().bytes_read - before
        chat.switch(chat.history()[-2].id)
    return Resumed(result.timings.ttft_s, result.usage.reused_tokens, read, leaves.num_bytes)


@contextmanager
def _runtime(setting: Setting, data_dir: Path, context: int) -> Iterator[Runtime]:
    options = {
        "data_dir": data_dir,
        "model": str(setting.model_path),
        "key_protection": "file",
        "key_file": None,
    }
    config: Config = setting.roomy(context + ROOM).replace(options)
    with Runtime(config=config) as runtime:
        if runtime.degraded is not None:
            raise ConfigError(f"the conversation cannot be stored: {runtime.degraded}")
        yield runtime
    gc.collect()  # the arenas go now, not in the middle of the next measurement


def _cut(runtime: Runtime, chat: Conversation, ids: Sequence[int], wanted: int) -> str:
    """The start of the ids' text that adds just `wanted` tokens to the conversation, or few more."""
    turns = chat.history()
    fixed = message_tokens(runtime, "", turns)
    if fixed >= wanted:
        raise ConfigError(f"the chat template alone has {fixed} tokens: use a larger --context")
    count, best = wanted - fixed, ""
    nearest = 0
    for _ in range(_TRIES):
        text = decode_ids(runtime, ids[:count])
        found = message_tokens(runtime, text, turns)
        if found == wanted:
            return text
        if found > wanted and (not best or found < nearest):
            best, nearest = text, found
        count = min(max(count + wanted - found, 1), len(ids))
    if best:
        return best
    while found < wanted:  # the ids' text has fewer tokens than it had as a whole text's start
        text += " and"
        found = message_tokens(runtime, text, turns)
    return text
