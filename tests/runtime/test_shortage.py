"""A machine that runs out of memory: one line that says what to do, and what was said before is kept."""

import errno

import pytest
import torch
from fakes import FakeFactory

from edgekv import EdgeKVError, OutOfMemory
from edgekv.shortage import told_as


def torchs():
    """What torch raises on the CPU; its words are all that tells it from its other errors."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 56, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (MemoryError, "this machine"),
        (torchs, "this machine"),
        (lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), "this machine"),
        (lambda: torch.OutOfMemoryError("CUDA out of memory"), "the GPU"),
    ],
)
def test_each_kind_of_shortage_is_told_alike(make, where):
    """Guards "internal error RuntimeError" where closing a browser would have helped."""
    error = make()
    told = told_as(error)
    assert isinstance(told, OutOfMemory)
    assert told.__cause__ is error
    assert str(told).startswith(f"{where} has not enough free memory; close other programs")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("shape"), EdgeKVError("said")])
def test_other_errors_stay_what_they_are(error):
    """Guards advice about memory where it is not what is missing."""
    assert told_as(error) is error


def test_an_answer_that_runs_out_of_memory_is_kept_and_the_next_one_answered(open_runtime):
    """Guards the words that were said before, and a Runtime that is of no more use afterwards."""
    factory = FakeFactory(error=torchs(), error_at=3)
    runtime = open_runtime(factory)
    chat = runtime.conversation("a")
    with pytest.raises(OutOfMemory, match="smaller --device-budget"):
        chat.send("one")
    assert chat.turns()[-1].answer
    factory.engine.error = None
    assert chat.send("two").finish_reason == "stop"


def test_a_runtime_that_cannot_be_opened_says_why(open_runtime):
    """Guards opening: what is raised in the engine's thread is what a person is told."""

    def build(*_args, **_options):
        raise MemoryError

    with pytest.raises(OutOfMemory):
        open_runtime(build)
