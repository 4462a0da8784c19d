"""Finding words in all chats."""

import random
from types import SimpleNamespace

from edgekv import StoreError
from edgekv.conversation.turns import Turn
from edgekv_tui.search.index import SearchIndex
from edgekv_tui.search.keeper import SearchKeeper


def test_words_are_found_whatever_they_are():
    """Guards the query: accents and case do not matter, operators and quotes are words, the last may be begun."""
    index = SearchIndex()
    index.add(
        "trip", [Turn(0, None, "Où est le Café?", 'It\'s "near" the river NOT far'), Turn(1, 0, "thanks", "")]
    )
    index.add("work", [Turn(0, None, "river data", "")])
    found = {
        words: [(hit.name, hit.turn_id) for hit in index.find(words)]
        for words in (
            "cafe",
            "CAF",
            "river not",
            'near" OR "x',
            "it's",
            "riv",
            "NEAR(",
            "*",
            "",
            "nowhere",
            "said:river",
            "thanks",
        )
    }
    assert found["cafe"] == found["CAF"] == found["river not"] == found["it's"] == [("trip", 0)]
    assert sorted(found["riv"]) == [("trip", 0), ("work", 0)]
    assert found["NEAR("] == [("trip", 0)]
    assert found['near" OR "x'] == found["*"] == found[""] == found["nowhere"] == found["said:river"] == []
    assert found["thanks"] == [("trip", 1)]


def test_a_conversation_is_replaced_and_removed():
    """Guards forgotten words: what was indexed before is gone."""
    index = SearchIndex()
    index.add("trip", [Turn(0, None, "first", "")])
    index.add("trip", [Turn(0, None, "second", "")])
    assert (index.find("first"), len(index.find("second"))) == ([], 1)
    index.remove("trip")
    assert index.find("second") == []


def test_the_index_keeps_to_its_limit_and_to_memory(tmp_path, monkeypatch):
    """Guards a search that grows with the archive: what does not fit is left out and said, no file is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    index = SearchIndex(limit_bytes=1 << 20)
    for number in range(40):
        index.add(f"chat {number}", [Turn(0, None, " ".join(f"w{number}x{at}" for at in range(8000)), "end")])
    assert not index.is_whole
    assert len(index.find("w0x77")) == 1
    assert index.find("w39x7999") == []
    pages, size = (index._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    assert pages * size <= 1 << 20
    assert list(tmp_path.iterdir()) == []


def test_a_full_index_can_be_told_to_forget():
    """Guards SQLite's "full" at a DELETE, which ended the chat: it forgets more then, never less."""
    index, chance, num_begun_anew = SearchIndex(limit_bytes=1 << 16), random.Random(1), 0
    for step in range(80):
        known, name = set(index.names), f"chat {chance.randrange(20)}"
        words = " ".join(f"w{chance.randrange(5000)}" for _ in range(chance.choice((50, 500))))
        index.add(name, [Turn(at, None, f"step{step}end {words}", "") for at in range(5)])
        num_begun_anew += len(index.names) < len(known)
        for hit in index.find("step"):
            assert hit.name in index.names
        if step % 4 == 0:
            index.remove(name)
            assert index.find(f"step{step}end") == []
    assert num_begun_anew > 0


class FakeSession:
    """Kept conversations by name, each of one turn; one of them cannot be read."""

    def __init__(self, said):
        self.said = said
        self.num_opens = 1
        self.was_read = []

    async def infos(self, *, again):
        return [SimpleNamespace(name=name, created=1.0) for name in self.said]

    def num_answers(self, name):
        return 0

    async def read(self, name):
        self.was_read.append(name)
        if self.said[name] is None:
            raise StoreError("damaged")
        return [Turn(0, None, self.said[name], "")]


async def looks(keeper, words):
    async for _ in keeper.refresh():
        pass
    return [hit.name for hit in await keeper.find(words)]


async def test_what_was_read_is_read_again_where_it_must_be():
    """Guards a stale search: after the session was opened anew, and after a full index had to forget all."""
    session = FakeSession({"one": "trains", "two": "ships", "three": None})
    keeper = SearchKeeper(session)
    assert await looks(keeper, "trains") == ["one"]
    session.said["one"] = "horses"
    assert await looks(keeper, "horses") == []
    assert session.was_read == ["one", "two", "three"]
    session.num_opens += 1
    assert await looks(keeper, "horses") == ["one"]
    keeper._index._begin_anew()
    del session.was_read[:]
    assert await looks(keeper, "ships") == ["two"]
    assert session.was_read == ["one", "two", "three"]


async def test_searching_opens_the_turn_on_its_branch(sit_down):
    """Guards Ctrl+F: kept chats of this run and of earlier ones, other branches too, and no private one."""
    async with sit_down("old") as person:
        for text in ("about trains", "about horses"):
            await person.talks(text)
        await person.presses("f2")
        await person.sees("editing message 2")
        await person.types(" and mules\r")
        await person.sees("and mules", "exact;")
    async with sit_down("new") as person:
        await person.talks("about ships")
        await person.presses("ctrl+t")
        await person.sees("PRIVATE")
        await person.talks("about horses, secretly")
        await person.presses("ctrl+f")
        await person.types("ships")
        await person.sees("1 found", "new  about ships")
        await person.presses(*["backspace"] * 5)
        await person.types("horses")
        await person.sees("2 found", "old  about horses")
        await person.presses("down" if person.app.screen._hits[0].excerpt.count("mules") else "left", "enter")
        await person.misses("Enter opens", "PRIVATE")
        await person.sees("about trains", "about horses")
        assert [turn.user for turn in person.history()] == ["about trains", "about horses"]
        assert person.app.screen.focused.number == 1
