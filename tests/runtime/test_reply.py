"""Dialogues given whole and texts that go on: what is reused, what is added, what is refused."""

import pytest
from fakes import FakeFactory, FakeFront

from edgekv import AsyncRuntime, ContextOverflow, ConversationError

HELLO = ("assistant", "hello there")


def test_a_dialogue_sent_again_goes_on_from_what_was_said(open_runtime):
    """Guards reuse for programs that send everything each time: the generated ids are used, not the text's."""
    chat = open_runtime().conversation(private=True)
    first = chat.stream_reply([("user", "one")]).result()
    trimmed = ("assistant", " hello there \n")
    second = chat.stream_reply([("user", "one"), trimmed, ("user", "two")]).result()
    assert second.usage.reused_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert [turn.user for turn in chat.history()] == ["one", "two"]


def test_another_second_question_is_a_branch(open_runtime):
    """Guards an edited message: the common part is shared and the old branch stays."""
    chat = open_runtime().conversation(private=True)
    for question in ("two", "three"):
        chat.stream_reply([("user", "one")]).result() if not chat.history() else None
        chat.stream_reply([("user", "one"), HELLO, ("user", question)]).result()
    assert [(branch.num_turns, branch.last_user_text) for branch in chat.branches()] == [
        (2, "two"),
        (2, "three"),
    ]


def test_what_was_not_said_here_is_added_as_given(open_runtime):
    """Guards histories from elsewhere: the model sees them, closed by the template, and they are kept too."""
    factory = FakeFactory()
    said = [("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    runtime = open_runtime(factory)
    chat = runtime.conversation("kept", system="be brief")
    chat.stream_reply(said).result()
    text = FakeFront().tokenizer.decode(list(factory.engine.requests[0].token_ids), special=True)
    assert text == "<s><|system\nbe brief|><|user\na|><|assistant\nb|><|user\nc|><|assistant\n"
    runtime.close()
    again = open_runtime().conversation("kept")
    assert [(turn.user, turn.answer) for turn in again.history()] == [("a", "b"), ("c", "hello there")]


def test_neighbours_of_one_role_are_one_message(open_runtime):
    """Guards programs that send two user messages in a row: no made-up empty answer comes between them."""
    factory = FakeFactory()
    chat = open_runtime(factory).conversation(private=True)
    chat.stream_reply([("user", "a"), ("user", "b")]).result()
    text = FakeFront().tokenizer.decode(list(factory.engine.requests[0].token_ids), special=True)
    assert "<|user\na\n\nb|>" in text


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "the last message has to be the user's"),
        ([("system", "x")], "the last message"),
        ([("user", "a"), ("assistant", "b")], "the last message"),
        ([("assistant", "a"), ("user", "b")], "begins with an answer"),
        ([("user", "a"), ("system", "b"), ("user", "c")], "in the middle"),
        ([("tool", "a")], "no message has the role 'tool'"),
    ],
)
def test_what_is_no_dialogue_is_refused(open_runtime, messages, says):
    """Guards against answering something else than what was asked."""
    chat = open_runtime().conversation(private=True)
    with pytest.raises(ConversationError, match=says):
        chat.stream_reply(messages)
    assert chat.history() == []


def test_another_system_message_is_refused(open_runtime):
    """Guards a system message from being dropped in silence where the conversation began with another."""
    chat = open_runtime().conversation(private=True, system="one")
    with pytest.raises(ConversationError, match="another system message"):
        chat.stream_reply([("system", "two"), ("user", "a")])


def test_a_text_goes_on_without_a_template(open_runtime):
    """Guards completions: BOS and the text, nothing else; and the next one reuses what is the same."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    first = runtime.stream_text("once <|upon", max_tokens=3).result()
    assert (first.text, first.finish_reason) == ("hel", "length")
    tokenizer = FakeFront().tokenizer
    assert list(factory.engine.requests[0].token_ids) == tokenizer.encode(
        "once <|upon", special=False, add_bos=True
    )
    assert not factory.engine.requests[0].durable
    assert runtime.stream_text("once <|upon a").result().usage.reused_tokens == 12


def test_a_text_beyond_the_window_is_refused_under_exact_attention(open_runtime):
    """Guards against a cut in silence."""
    runtime = open_runtime(FakeFactory(front=FakeFront(context_length=8)), attention="exact")
    with pytest.raises(ContextOverflow, match="9 tokens"):
        runtime.stream_text("12345678")


def test_asyncio_has_them_too(data_dir):
    """Guards the asyncio face."""
    import asyncio

    async def main():
        async with AsyncRuntime(engine_factory=FakeFactory(), data_dir=data_dir) as runtime:
            chat = await runtime.conversation(private=True)
            reply = await chat.stream_reply([("user", "a")]).result()
            return reply.text, (await runtime.stream_text("a").result()).text

    assert asyncio.run(main()) == ("hello there", "hello there")
