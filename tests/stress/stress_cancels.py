"""Answers stopped at random moments, from many threads, in every way there is, over a real engine, tiny model."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
import threading
import time

from fakes import FakeFront

from edgekv import AsyncConversation, Busy, Cancelled, CancelToken, Done, Runtime, TextDelta
from edgekv.engine.build import assemble

STUCK_S = 600
LONGEST = 1400  # tokens; then the dialogue branches off its first turn
WAYS = ("token", "conversation", "close", "drop", "timeout", "deliver", "asyncio", "none")


class Front(FakeFront):
    """The fake tokenizer for an engine that closes what it is given."""

    def warm_up(self):
        pass

    def close(self):
        pass


def open_runtime(model, data_dir):
    """A Runtime with little memory, so that conversations push each other out."""

    def build(config, _path, *, data_dir, keys):
        front = Front(context_length=2048)
        return assemble(config, dataclasses.replace(model, front=front), data_dir=data_dir, keys=keys), front

    limits = {"device_budget": 4 << 20, "host_budget": 1 << 20, "disk_budget": 1 << 30, "attention": "exact"}
    return Runtime(engine_factory=build, data_dir=data_dir, queue_size=64, **limits)


class Campaign:
    """`violations` are sentences; `counts` tells how answers ended, by the way they were stopped."""

    def __init__(self, runtime, *, num_threads, num_cancels, seed):
        self.runtime = runtime
        self.violations = []
        self.counts = collections.Counter()
        self.chats = [self._open(number) for number in range(num_threads)]
        self._num_cancels = num_cancels
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(number, random.Random(seed * 1000 + number)))
            for number in range(num_threads)
        ]

    def _open(self, number):
        if number % 2:
            return self.runtime.conversation(private=True)
        return self.runtime.conversation(f"chat {number % 8}")  # several threads talk in the same ones

    def run(self):
        """All of it; what does not end is a violation."""
        for thread in self._threads:
            thread.start()
        end = time.monotonic() + STUCK_S
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        if any(thread.is_alive() for thread in self._threads):
            self.violations.append("a thread is stuck")

    def _work(self, number, rng):
        chat = self.chats[number]
        while self.counts.total() < self._num_cancels:
            way = rng.choice(WAYS)
            try:
                ended = getattr(self, f"_by_{way}")(chat, rng)
                with self._lock:
                    self.counts = self.counts + collections.Counter([(way, ended)])
            except Busy:
                time.sleep(0.002)  # nothing was stopped
            except Exception as error:
                self.violations.append(f"{way}: {type(error).__name__}: {error}")

    def _ask(self, chat, rng, **options):
        text = "".join(rng.choices("abcdefgh ", k=rng.randrange(10, 300)))
        options |= {"max_tokens": rng.randrange(1, 40)}
        if chat.num_tokens() > LONGEST:
            return chat.stream_edit(0, text, **options)
        return chat.stream(text, **options)

    def _read(self, stream):
        """To the end: nothing may be lost on the way."""
        text, result = [], None
        for event in stream:
            if isinstance(event, TextDelta):
                text.append(event.text)
            elif isinstance(event, Done):
                result = event.result
        self._check(text, result)
        return result.finish_reason

    def _check(self, text, result):
        if result is None or "".join(text) != result.text:
            self.violations.append(f"events {text} are not the answer {result}")

    def _later(self, rng, stop):
        timer = threading.Timer(rng.random() ** 3 * 0.3, stop)
        timer.start()
        return timer

    def _by_token(self, chat, rng):
        token = CancelToken()
        stream = self._ask(chat, rng, cancel=token)
        timer = self._later(rng, token.cancel)
        ended = self._read(stream)
        timer.join()
        return ended

    def _by_conversation(self, chat, rng):
        stream = self._ask(chat, rng)
        timer = self._later(rng, chat.cancel)
        ended = self._read(stream)
        timer.join()
        return ended

    def _by_close(self, chat, rng):
        with self._ask(chat, rng) as stream:
            for _ in zip(range(rng.randrange(6)), stream, strict=False):
                pass
        return "closed"

    def _by_drop(self, chat, rng):
        stream = self._ask(chat, rng)
        for _ in zip(range(rng.randrange(6)), stream, strict=False):
            pass
        generation = stream._generation
        del stream
        generation.wait()
        return "dropped"

    def _by_timeout(self, chat, rng):
        return self._read(self._ask(chat, rng, timeout=rng.random() * 0.2 + 1e-6))

    def _by_deliver(self, chat, rng):
        got, ended = [], threading.Event()

        def handle(event):
            got.append(event)
            if isinstance(event, Done | BaseException):
                ended.set()

        stream = self._ask(chat, rng)
        stream.deliver(handle)
        timer = self._later(rng, stream.cancel)
        if not ended.wait(STUCK_S):
            self.violations.append("the last event was never delivered")
        timer.join()
        self._check([e.text for e in got if isinstance(e, TextDelta)], got[-1].result)
        return got[-1].result.finish_reason

    def _by_asyncio(self, chat, rng):
        async def main():
            if chat.num_tokens() > LONGEST:
                stream = AsyncConversation(chat).edit(0, "x" * rng.randrange(200), max_tokens=40)
            else:
                stream = AsyncConversation(chat).stream("x" * rng.randrange(200), max_tokens=40)
            task = asyncio.create_task(stream.result())
            await asyncio.sleep(rng.random() ** 3 * 0.2)
            task.cancel()
            try:
                return (await task).finish_reason
            except (asyncio.CancelledError, Cancelled):
                return "cancelled"

        return asyncio.run(main())

    def _by_none(self, chat, rng):
        return self._read(self._ask(chat, rng))
