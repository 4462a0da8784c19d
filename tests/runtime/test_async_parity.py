"""The asyncio face lacks nothing that the Runtime has."""

import pytest

from edgekv import AsyncConversation, AsyncRuntime, Conversation, Runtime


def names(kind):
    return {name for name in vars(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("sync", "face", "without"),
    [
        (Runtime, AsyncRuntime, set()),
        # `edit` and `regenerate` are streams there whose `.result()` is awaited
        (Conversation, AsyncConversation, {"stream_edit", "stream_regenerate", "retire"}),
    ],
)
def test_every_method_is_there(sync, face, without):
    """Guards asyncio programs against an API that grew on one side only."""
    assert names(sync) - names(face) == without
