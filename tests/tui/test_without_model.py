"""No model, or one that does not load: what is kept is there all the same."""

import pytest
from fakes import FakeFactory

from edgekv import Config, ModelLoadError, Runtime, StoreError
from edgekv.conversation.kept import kept_conversations
from edgekv_tui.session import Session


class Opener:
    """Opens Runtimes while `works`; else the model does not load, once the data directory was unlocked."""

    def __init__(self, **fake):
        self.works = False
        self.factory = FakeFactory(**fake)

    def __call__(self, **options):
        return Runtime(engine_factory=self._build, **options)

    def _build(self, *args, **options):
        if not self.works:
            raise ModelLoadError("the file x.gguf ends too early")
        return self.factory(*args, **options)


@pytest.fixture
def kept(data_dir):
    """Two conversations, one with two branches."""
    with Runtime(engine_factory=FakeFactory(), data_dir=data_dir) as runtime:
        trip = runtime.conversation("trip")
        trip.send("about trains")
        trip.send("about horses")
        trip.edit(1, "about ships")
        runtime.conversation("work").send("about nails")


def names(data_dir):
    return sorted(info.name for info in kept_conversations(data_dir))


async def test_what_is_kept_is_read_and_searched(sit_down, kept):
    """Guards one's own words against a model file that is gone: nothing was listed, nothing could be read."""
    async with sit_down("trip", opener=Opener(), waits=False, size=(120, 30)) as person:
        await person.sees("ends too early", "Enter: begin", "trip · no model", "about ships", "work")
        await person.presses("escape")
        await person.misses("Enter: begin")
        await person.sees("the file x.gguf ends too early")
        await person.presses("ctrl+f")
        await person.types("horses")
        await person.sees("1 found")
        await person.presses("enter")
        await person.sees("about horses", "branch 1 of 2")
        assert [turn.user for turn in person.history()] == ["about trains", "about horses"]
        await person.does("branches")
        await person.sees("2 turns · about ships")
        await person.presses("escape")
        await person.misses("2 turns")
        await person.presses("ctrl+l", "home", "enter")
        await person.sees("about nails", "hello there")
        await person.says("two")
        await person.sees("no model is loaded; Ctrl+P: Use another model", "nothing was sent", "█ two")
        person.app.clear_notifications()  # they would lie over the line for five seconds
        await person.presses("ctrl+r")
        await person.sees("Load the model again")
        await person.presses("f3")
        await person.sees("the model ended it", "it was answered in an earlier run")
        await person.presses("escape")
        await person.does("given_up")
        await person.sees("every conversation's KV is there", "no limit was reached")
        await person.presses("escape")
        await person.does("unload")
        await person.sees("no model is loaded; Ctrl+P")
    with Runtime(engine_factory=FakeFactory(), data_dir=person.app.session.config.data_dir) as runtime:
        read = [turn.user for turn in runtime.conversation("trip").history()]
    assert read == ["about trains", "about ships"], "the branch that was read is not the one to go on from"


async def test_what_is_kept_is_taken_along_renamed_and_forgotten(sit_down, kept, data_dir, tmp_path):
    """Guards leaving: whoever has no model any more can still export everything, and destroy it."""
    async with sit_down("trip", opener=Opener(), waits=False, size=(120, 30)) as person:
        await person.sees("ends too early", "Enter: begin", "about ships")
        await person.presses("escape")
        await person.misses("Enter: begin")
        for deed, suffix in (("export_markdown", "md"), ("export_json", "jsonl")):
            await person.does(deed)
            await person.answers(str(tmp_path / f"trip.{suffix}"))
            await person.sees("exported to", suffix)
        await person.does("rename")
        await person.answers("journey")
        await person.until(lambda: " journey " in person.screen().splitlines()[0], "the title")
        await person.does("forget")
        await person.sees("Its key is destroyed")
        await person.presses("y")
        await person.sees("forgotten: journey")
        assert names(data_dir) == ["work"]
        await person.does("import_file")
        await person.answers(str(tmp_path / "trip.jsonl"))
        await person.sees("about ships", "trip · no model")
        assert names(data_dir) == ["trip", "work"]
    assert "about ships" in (tmp_path / "trip.md").read_text()


async def test_the_model_loads_at_the_second_try(sit_down, kept):
    """Guards "Load the model again": what was begun, here and in another chat, and the chat that was chosen are
    there after a try that fails, and after one that does not.
    """
    opener, pasted = Opener(), "\n".join(f"line {number}" for number in range(90))
    async with sit_down("trip", opener=opener, waits=False, size=(120, 30)) as person:
        prompt = person.app.chat_screen.query_one("#prompt")
        await person.sees("ends too early", "Enter: begin", "about ships")
        await person.presses("escape")
        await person.misses("Enter: begin")
        person.pastes(pasted)
        await person.until(lambda: prompt.text == "[paste 1: 90 lines]")
        await person.presses("ctrl+l", "home", "enter")
        await person.sees("about nails")
        await person.types("begun")
        for works in (False, True):
            opener.works = works
            session, opens = person.app.session, person.app.session.num_opens
            await person.does("load_again")
            await person.until(lambda session=session, opens=opens: session.num_opens > opens)
            await person.misses("loading", "closing")
            if not works:
                await person.sees("ends too early", "Enter: begin")
                await person.presses("escape")
                await person.misses("Enter: begin")
            await person.sees("about nails")
            assert (person.app.chat_screen.chat.name, prompt.text) == ("work", "begun")
        await person.presses("enter")
        await person.sees("begun")
        await person.sees("hello there", times=2)
        await person.presses("ctrl+l", "end", "enter")
        await person.sees("about ships")
        await person.until(lambda: prompt.text == "[paste 1: 90 lines]", "the paste, folded")
        assert prompt.whole_text == pasted


async def test_a_first_start_without_a_model_makes_nothing(sit_down, data_dir):
    """Guards the data directory: a look at what is kept must not make keys, nor ask for a passphrase."""

    def fail(**_options):
        raise ModelLoadError("no model was chosen")

    async with sit_down(opener=fail, waits=False) as person:
        await person.sees("no model was chosen", "Enter: begin")
        await person.presses("escape")
        await person.misses("Enter: begin")
        await person.sees("no model was chosen", "Nothing was said yet")
    assert not data_dir.exists()


async def test_a_model_is_offered_though_nothing_can_be_read(sit_down, monkeypatch):
    """Guards the way out: where what is kept could not be opened either, no other model was offered."""

    def refuse(**_options):
        raise StoreError("the data directory is damaged")

    monkeypatch.setattr("edgekv_tui.session.Archive", refuse)
    async with sit_down(opener=Opener(), waits=False, size=(120, 30)) as person:
        await person.sees("ends too early; and the data directory is damaged", "Enter: begin")
        await person.presses("escape")
        await person.misses("Enter: begin")


async def test_a_passphrase_is_asked_for_once(data_dir):
    """Guards the second door: the model failed after the directory was unlocked, and it was asked for again. A
    wrong one opens nothing, model or none.
    """
    config = Config(data_dir=data_dir, key_protection="passphrase")
    with Runtime(engine_factory=FakeFactory(), config=config, passphrase="open sesame") as runtime:
        runtime.conversation("trip").send("one")
    said, asked = iter(["wrong", "open sesame"]), []

    def answer(question):
        asked.append(question)
        return next(said)

    session = Session(config, opener=Opener())
    with pytest.raises(ModelLoadError):
        await session.open(answer)
    assert ([info.name for info in await session.infos()], len(asked)) == (["trip"], 2)
    await session.close()
    with pytest.raises(StoreError):
        await session.open(lambda _question: "wrong")
    assert not session.can_read
