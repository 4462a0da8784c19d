"""Stand-ins for the engine and the model, so that everything above them is tested in milliseconds.

The fake engine answers with a fixed text, one character a token, can be slow, and counts as reused the
longest common prefix with what it saw of the same sequence before, as the real one does for full leaves.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgekv.engine.stopper import Stopper
from edgekv.events import CacheUse, PrefillProgress, Result, TextDelta, Timings, Usage

BOS, START, END = 1, 2, 3
FIRST_CHARACTER = 16
BLOCK = 512


class FakeTokenizer:
    """One token a character; `<s>`, `<|` and `|>` are control tokens when markup is meant."""

    end_ids = frozenset({END})
    adds_space_prefix = False
    adds_bos = True
    bos_id = BOS
    _control: ClassVar = {"<s>": BOS, "<|": START, "|>": END}

    def encode(self, text, *, special, add_bos=False):
        ids = [BOS] if add_bos else []
        at = 0
        while at < len(text):
            marker = next((m for m in self._control if special and text.startswith(m, at)), None)
            ids.append(self._control[marker] if marker else ord(text[at]) + FIRST_CHARACTER)
            at += len(marker) if marker else 1
        return ids

    def encode_pieces(self, pieces, *, add_bos=False):
        ids = [BOS] if add_bos else []
        for text, special in pieces:
            ids.extend(self.encode(text, special=special))
        return ids

    def piece(self, token_id, *, special=False):
        return self.decode([token_id], special=special).encode()

    def decode(self, ids, *, special=False):
        names = {value: marker for marker, value in self._control.items()} if special else {}
        return "".join(chr(i - FIRST_CHARACTER) if i >= FIRST_CHARACTER else names.get(i, "") for i in ids)


@dataclass
class FakeTurnText:
    prefix_unchanged: bool
    pieces: list


class FakeTemplate:
    """`<|user\\ntext|>` and `<|assistant\\n`, with `|>` after an answer that did not end by itself.

    With `drops_thinking` it leaves `[...]` at the start of earlier answers out, as Qwen3's does.
    """

    stop = ()

    def __init__(self, *, drops_thinking=False):
        self.drops_thinking = drops_thinking

    def render_turn(self, history, new_messages, *, answer_ended=True):
        if not any(message["role"] == "user" for message in history):
            return FakeTurnText(True, self.render_pieces([*history, *new_messages]))
        pieces = [] if answer_ended else [("|>", True)]
        thought = self.drops_thinking and history[-1]["content"].startswith("[")
        return FakeTurnText(not thought, pieces + self.render_pieces(new_messages))

    def render_pieces(self, messages):
        pieces = []
        for message in messages:
            text = message["content"]
            if self.drops_thinking and message["role"] == "assistant":
                text = text.rpartition("]")[2]
            pieces += [(f"<|{message['role']}\n", True), (text, False), ("|>", True)]
        return [*pieces, ("<|assistant\n", True)]


class FakeFront:
    def __init__(self, *, fingerprint=b"\1" * 32, context_length=4096, name="fake", drops_thinking=False):
        self.tokenizer = FakeTokenizer()
        self.template = FakeTemplate(drops_thinking=drops_thinking)
        self.fingerprint = fingerprint
        self.context_length = context_length
        self.name = name


class FakeEngine:
    """See the module. `answer` is what it says; `token_s` and `block_s` slow it down. `error` is raised
    instead of token `error_at`, or before anything. `stored` are the paths it says are on disk.

    `hold` lets a test decide when it goes on: while it is cleared, every token waits (until cancelled).
    `started` is set when the first request begins. `blocks`, where it is set, is a semaphore of blocks that
    prefill may compute. `marks` is a file that is there once a token is, for tests of another process.
    """

    def __init__(
        self,
        *,
        answer="hello there",
        token_s=0.0,
        block_s=0.0,
        error=None,
        error_at=0,
        ends=True,
        stored=(),
        marks=None,
    ):
        self.answer = answer
        self.token_s = token_s
        self.block_s = block_s
        self.error = error
        self.error_at = error_at
        self.ends = ends
        self.stored = stored
        self.marks = marks
        self.hold = threading.Event()
        self.hold.set()
        self.started = threading.Event()
        self.blocks = None
        self.requests = []
        self.moved = []
        self.released = []
        self.seen = {}
        self.computed_tokens = 0
        self.num_generated = 0
        self.closed = False
        self.is_loaded = True
        self.num_unloaded = 0
        self.hints = []
        self.thread = threading.current_thread()

    def generate(self, request, emit, is_cancelled):
        assert threading.current_thread() is self.thread, "one thread owns the engine"
        self.requests.append(request)
        self.started.set()
        self.load()
        if self.error is not None and self.error_at == 0:
            raise self.error
        began = time.perf_counter()
        context = list(request.token_ids)
        known = self.seen.get(request.sequence_id, [])
        reused = _common_prefix(known, context[:-1])
        generated, text, reason = [], "", "cancelled"
        if self._prefill(context, reused, emit, is_cancelled):
            generated, text, reason = self._decode(request, emit, is_cancelled)
        self.seen[request.sequence_id] = context + generated
        return Result(
            text=text,
            token_ids=tuple(generated),
            finish_reason=reason,
            usage=Usage(len(context), len(generated), reused),
            timings=Timings(time.perf_counter() - began, 1000.0, 100.0),
            cache=self.cache_use(),
        )

    def _prefill(self, context, reused, emit, is_cancelled):
        done = reused
        emit(PrefillProgress(done, len(context), reused))
        while done < len(context):
            if is_cancelled() or not self._may_compute(is_cancelled):
                return False
            time.sleep(self.block_s)
            step = min(BLOCK, len(context) - done)
            done += step
            self.computed_tokens += step
            emit(PrefillProgress(done, len(context), reused, eta_s=0.0))
        return True

    def _decode(self, request, emit, is_cancelled):
        stopper, generated, text = Stopper(request.stop), [], ""
        for character in self.answer:
            if not self._may_go_on(is_cancelled):
                return generated, text + stopper.flush(), "cancelled"
            if self.error is not None and len(generated) == self.error_at:
                raise self.error
            if len(generated) == request.max_tokens:
                return generated, text + stopper.flush(), "length"
            generated.append(ord(character) + FIRST_CHARACTER)
            self.num_generated += 1
            if self.marks:
                Path(self.marks).touch()
            shown = stopper.push(character)
            text += shown
            if shown:
                emit(TextDelta(shown, len(generated)))
            if stopper.stopped:
                return generated, text, "stop"
            time.sleep(self.token_s)
        text += stopper.flush()
        if self.ends:
            generated.append(END)
        return generated, text, "stop"

    def _may_go_on(self, is_cancelled):
        while not is_cancelled():
            if self.hold.wait(0.002):
                return not is_cancelled()
        return False

    def _may_compute(self, is_cancelled):
        while self.blocks and not self.blocks.acquire(timeout=0.002):
            if is_cancelled():
                return False
        return True

    def warm_up(self):
        """Nothing to warm."""

    def load(self):
        self.is_loaded = True

    def unload(self):
        assert threading.current_thread() is self.thread, "one thread owns the engine"
        self.is_loaded = False
        self.num_unloaded += 1
        self.seen.clear()

    def release(self, sequence_id, *, forget):
        assert threading.current_thread() is self.thread, "one thread owns the engine"
        self.released.append((sequence_id, forget))
        self.seen.pop(sequence_id, None)

    def embed(self, texts):
        """The share of each of four kinds of ids."""
        if not self.is_loaded:
            return None
        vectors = np.stack([np.bincount(np.array(ids) % 4, minlength=4) for ids in texts]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def cache_use(self):
        tokens = sum(len(ids) for ids in self.seen.values())
        limits = {"device_limit_bytes": 1 << 20, "host_limit_bytes": 2 << 20, "disk_limit_bytes": 4 << 20}
        return CacheUse(device_bytes=tokens * 8, device_peak_bytes=tokens * 8, **limits)

    def where(self, sequence_id):
        return "D" * (len(self.seen.get(sequence_id, [])) // 16)

    def moves(self):
        return list(self.moved)

    def hint(self, sequence_id, expect, ttl_s):
        self.hints.append((sequence_id, expect, ttl_s))

    def stored_paths(self, sequence_id):
        return [np.array(ids[: len(ids) // 16 * 16], np.int32) for ids in self.stored]

    def close(self):
        assert threading.current_thread() is self.thread, "one thread owns the engine"
        self.closed = True


class FakeFactory:
    """An `engine_factory` that remembers the engine it made, and how it was asked."""

    def __init__(self, *, front=None, **engine_options):
        self.front = front or FakeFront()
        self.engine_options = engine_options
        self.engine = None
        self.data_dir = None
        self.keys = None

    def __call__(self, config, model, *, data_dir, keys):
        self.data_dir = data_dir
        self.keys = keys
        self.engine = FakeEngine(**self.engine_options)
        return self.engine, self.front


def _common_prefix(a, b):
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
