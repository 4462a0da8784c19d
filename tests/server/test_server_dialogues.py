"""Which conversation a request is lent, and what finding it costs."""

import threading
import time

import pytest
from fakes import FakeFactory
from patience import PATIENCE_S, wait_until
from server_client import open_test_client

from edgekv import Runtime
from edgekv.server import dialogues
from edgekv.server.dialogues import Dialogues, shared_characters


@pytest.mark.parametrize(
    ("held", "asked", "shared"),
    [
        ([], ["a"], 0),
        (["abc"], ["abd"], 2),
        (["abc"], ["xbc"], 0),
        (["abc", "long"], ["abc ", "lonely", "x"], 6),
        (["abc"], ["ab"], 2),
        (["", "é\U0001f600x"], ["", "é\U0001f600y"], 2),
    ],
)
def test_shared_characters(held, asked, shared):
    """Guards the search by halves at its edges."""
    assert shared_characters(held, asked) == shared


def test_long_texts_are_compared_quickly():
    """Guards against comparing letter by letter in Python: 16 MB took seconds for each of 32 dialogues."""
    one, other = "x" * (16 << 20), "x" * ((16 << 20) - 1) + "y"
    began = time.thread_time()
    assert shared_characters([one], [other]) == len(one) - 1
    assert time.thread_time() - began < 0.5


def test_giving_back_does_not_wait_for_who_compares(monkeypatch):
    """Guards all streams: the loop gives back, and it waited for a lock that was held while texts were compared."""
    with Runtime(engine_factory=FakeFactory(), durable=False) as runtime:
        pool = Dialogues(runtime)
        first, second = (pool.lend([("user", text)], None) for text in ("one", "two"))
        pool.give_back(first, ["one", "a"])
        begun, may_end = threading.Event(), threading.Event()

        def slow(held, asked):
            begun.set()
            assert may_end.wait(PATIENCE_S)
            return shared_characters(held, asked)

        monkeypatch.setattr(dialogues, "shared_characters", slow)
        lent = []
        thread = threading.Thread(target=lambda: lent.append(pool.lend([("user", "one")], None)))
        thread.start()
        assert begun.wait(PATIENCE_S)
        pool.give_back(second, ["two", "b"])
        may_end.set()
        thread.join()
        assert lent == [first]


def test_one_given_back_behind_the_last_look_is_forgotten(monkeypatch):
    """Guards memory: what came between the end of the thread that forgets and the loop's notice of it stayed."""
    forget, late = Dialogues.forget_old, []

    def forget_and_get_one_more(pool):
        forget(pool)
        if not late:
            late.append(pool.lend([("user", "late")], None))
            pool.give_back(late[0], None)

    monkeypatch.setattr(Dialogues, "forget_old", forget_and_get_one_more)
    with open_test_client(FakeFactory()) as client:
        ask = {
            "model": "fake",
            "top_p": 0,
            "messages": [{"role": "user", "content": "hi"}],
        }  # computes nothing
        client.post("/v1/chat/completions", json=ask)
        wait_until(lambda: late)
        wait_until(lambda: client.runtime.stats().num_open_conversations == 0)


def test_who_was_taken_meanwhile_is_not_lent_twice(monkeypatch):
    """Guards one conversation for two requests, now that texts are compared without the lock."""
    with Runtime(engine_factory=FakeFactory(), durable=False) as runtime:
        pool = Dialogues(runtime)
        first = pool.lend([("user", "one")], None)
        pool.give_back(first, ["one", "a"])
        taken = []

        def taking(held, asked):
            if not taken:
                taken.append(None)
                taken.append(pool.lend([("user", "one")], None))
            return shared_characters(held, asked)

        monkeypatch.setattr(dialogues, "shared_characters", taking)
        assert pool.lend([("user", "one")], None) is not first
        assert taken[1] is first
