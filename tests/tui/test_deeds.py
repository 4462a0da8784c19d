"""What can be done with a conversation besides talking."""

import json

from edgekv.conversation import foreign
from edgekv.conversation.kept import kept_conversations

CHATGPT = {
    "title": "Elsewhere",
    "current_node": "b",
    "mapping": {
        "a": {"message": {"author": {"role": "user"}, "content": {"parts": ["a question"]}}},
        "b": {
            "message": {"author": {"role": "assistant"}, "content": {"parts": ["its answer"]}},
            "parent": "a",
        },
    },
}


def names(data_dir):
    return [info.name for info in kept_conversations(data_dir)]


async def test_editing_makes_a_branch_and_branches_are_left_and_found(sit_down):
    """Guards edited messages: the old branch stays, is listed, and is shown when chosen."""
    async with sit_down() as person:
        for text in ("first", "second"):
            await person.talks(text)
        for key, number in (("shift+tab", 1), ("up", 0)):
            await person.presses(key)
            await person.until(lambda number=number: getattr(person.app.focused, "number", None) == number)
        await person.presses("e")
        await person.sees("editing message 1")
        await person.presses("escape")
        await person.misses("editing message")
        await person.presses("f2")
        await person.sees("editing message 2")
        person.engine.answer = "quite different"
        await person.types(" thought")
        await person.presses("enter")
        await person.sees("second thought", "quite different", "branch 2 of 2")
        await person.sees("hello there", times=1)
        await person.does("branches")
        await person.sees("2 turns · second", "● 2 turns · second thought")
        await person.presses("up", "up", "enter")
        await person.misses("thought")
        await person.sees("second", "hello there", "branch 1 of 2")
        assert [turn.user for turn in person.history()] == ["first", "second"]


async def test_details_of_an_answer(sit_down):
    """Guards the page behind F3: figures of the engine, and what is known of answers of earlier runs."""
    async with sit_down("a") as person:
        await person.presses("f3")
        await person.sees("there is no answer yet")
        await person.talks("hi")
        await person.sees("exact;")
        await person.presses("f3")
        await person.sees("exact: every token read the whole conversation", "the model ended it", "0 of them")
        await person.presses("escape")
        await person.does("copy")
        await person.sees("copied 11 characters")
        assert person.app.clipboard == "hello there"
    async with sit_down("a") as person:
        await person.presses("f3")
        await person.sees("the model ended it", "it was answered in an earlier run")


async def test_details_of_an_answer_that_is_being_made(sit_down):
    """Guards F3 against defaults told as facts: it said exact, and of an earlier run, while selection answered; and
    against a picture of the moment it was opened."""
    async with sit_down("a", answer="word " * 200, config={"max_tokens": 2000}) as person:
        await person.talks("one")
        person.engine.hold.clear()
        await person.says("two")
        await person.sees("thinking")
        await person.presses("f3")
        await person.sees("Answer 2: two", "is being made", "0 tokens so far", "known when it has ended")
        assert not any(
            text in person.screen() for text in ("exact:", "earlier run", "no answer yet", "/s so far")
        )
        await person.presses("escape")
        person.engine.token_s = 0.02
        person.engine.hold.set()
        await person.until(lambda: person.app.chat_screen.chat.answering.num_tokens > 5)
        await person.presses("f3")
        await person.sees("is being made", "tokens/s so far", "known when it has ended")
        page = person.screen()
        await person.until(lambda: person.screen() != page, "more tokens")
        person.app.chat_screen.chat.answering.stop()
        await person.sees("exact: every token", "you stopped it")  # drawn anew, and not opened again


async def test_details_of_a_message_without_an_answer(sit_down):
    """Guards the same page after a failure: nothing is known of an answer that never came."""
    async with sit_down("a") as person:
        person.engine.error = MemoryError("no memory")
        await person.says("hi")
        await person.sees("close other programs")
        await person.presses("f3")
        await person.sees("Answer 1: hi", "there is none", "Ctrl+R answers")
        assert not any(text in person.screen() for text in ("exact:", "earlier run"))


async def test_rename_keeps_everything_but_the_name(sit_down, data_dir):
    """Guards a new name: taken ones are refused in one line, the conversation goes on under it."""
    async with sit_down("old") as person:
        await person.talks("hi")
        await person.does("rename")
        await person.answers("new")
        await person.until(lambda: " new " in person.screen().splitlines()[0], "the title")
        await person.talks("again")
        await person.sees("hello there", times=2)
        await person.misses("Esc stops")
    assert names(data_dir) == ["new"]
    async with sit_down() as person:
        await person.sees("hi", "again")


async def test_export_and_import(sit_down, data_dir, tmp_path):
    """Guards taking a conversation along: Markdown for reading, JSON lines that come back whole, 0600."""
    async with sit_down("trip") as person:
        await person.talks("hi *there*")
        for deed, suffix in (("export_markdown", "md"), ("export_json", "jsonl")):
            await person.does(deed)
            await person.answers(str(tmp_path / f"trip.{suffix}"))
            await person.sees("exported to", suffix)
        await person.does("export_json")
        await person.answers(str(tmp_path / "trip.jsonl"))
        await person.sees("choose a new file")
        await person.does("forget")
        await person.sees("Its key is destroyed")
        await person.presses("y")
        await person.sees("forgotten: trip")
        await person.until(lambda: names(data_dir) == [])
        await person.does("import_file")
        await person.answers(str(tmp_path / "trip.jsonl"))
        await person.sees("hello there", "trip")
        (tmp_path / "conversations.json").write_text(json.dumps([CHATGPT]))
        await person.does("import_file")
        await person.answers(str(tmp_path / "conversations.json"))
        await person.sees("a question", "its answer", "Elsewhere")
    assert (
        tmp_path / "trip.md"
    ).read_text() == "# trip\n\n## You\n\nhi *there*\n\n## Answer\n\nhello there\n"
    assert (tmp_path / "trip.jsonl").stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "trip.jsonl").read_text().splitlines()[0])["name"] == "trip"
    assert sorted(names(data_dir)) == ["Elsewhere", "trip"]


async def test_what_cannot_be_imported_is_named_and_the_others_come(
    sit_down, data_dir, tmp_path, monkeypatch
):
    """Guards exports of many chats: the first that could not be kept ended the import of all behind it."""
    monkeypatch.setattr(foreign, "LARGEST_TEXT", 50)
    too_long = {"a": {"message": {"author": {"role": "user"}, "content": {"parts": ["x" * 51]}}}}
    chats = [{"title": "Huge", "current_node": "a", "mapping": too_long}, CHATGPT]
    (tmp_path / "conversations.json").write_text(json.dumps(chats))
    async with sit_down() as person:
        await person.does("import_file")
        await person.answers(str(tmp_path / "conversations.json"))
        await person.sees("What was not imported", "Huge", "more than 50 characters")
        await person.presses("escape")
        await person.sees("a question", "its answer", "Elsewhere")
    assert names(data_dir) == ["Elsewhere"]


async def test_what_an_import_left_out_is_told(sit_down, data_dir, tmp_path):
    """Guards against losses in silence: an image is not imported, and the chat says so."""
    parts = ["what is this?", {"content_type": "image_asset_pointer"}]
    mapping = {"a": {"message": {"author": {"role": "user"}, "content": {"parts": parts}}}}
    chat = {"title": "Picture", "current_node": "a", "mapping": mapping}
    (tmp_path / "conversations.json").write_text(json.dumps([chat]))
    async with sit_down() as person:
        await person.does("import_file")
        await person.answers(str(tmp_path / "conversations.json"))
        await person.sees("What was not imported", "Picture", "without 1 part")
        await person.presses("escape")
        await person.sees("what is this?", "no answer")


async def test_forgetting_needs_a_yes(sit_down, data_dir):
    """Guards against a key pressed by accident; a private chat is forgotten as well."""
    async with sit_down("a") as person:
        await person.talks("hi")
        await person.does("forget")
        await person.sees("Its key is destroyed")
        await person.presses("enter", "escape")
        await person.misses("Its key is destroyed")
        assert names(data_dir) == ["a"]
        await person.presses("ctrl+t")
        await person.sees("PRIVATE")
        await person.talks("psst")
        await person.does("forget")
        await person.sees("Its key is destroyed")
        await person.presses("y")
        await person.sees("forgotten: psst")
        assert names(data_dir) == ["a"]
