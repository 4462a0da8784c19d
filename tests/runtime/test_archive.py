"""What is kept, without a model."""

import pytest
from fakes import FakeFactory

from edgekv import Archive, Closed, ConversationError, Runtime, StoreError


def talk(runtime):
    chat = runtime.conversation("trip")
    chat.send("one")
    chat.send("two")
    chat.edit(1, "two again")
    return chat


def test_it_reads_what_a_runtime_kept(open_runtime, data_dir):
    """Guards one's own words against a model that is gone: all of them are there, and none of them changes."""
    runtime = open_runtime()
    chat = talk(runtime)
    lines, history = runtime.export_conversation("trip"), chat.history()
    runtime.close()
    with Archive(data_dir=data_dir) as archive:
        assert (archive.degraded, archive.names()) == (None, ["trip"])
        assert [(info.name, info.num_turns) for info in archive.conversations()] == [("trip", 3)]
        assert archive.export_conversation("trip") == lines
        read = archive.conversation("trip")
        assert (read.history(), read.where(), read.num_tokens() > 0) == (history, "", True)
        read.switch(1)
        assert [turn.user for turn in read.history()] == ["one", "two"]
        for ask in (lambda: read.send("x"), read.regenerate, lambda: read.add_exchanges([("a", "b")])):
            with pytest.raises(ConversationError, match="without a model"):
                ask()
        with pytest.raises(ConversationError, match="did you mean 'trip'"):
            archive.conversation("tripp")
    with pytest.raises(Closed, match="Archive is closed"):
        archive.names()
    assert open_runtime().conversation("trip").history() == history


def test_it_renames_imports_and_forgets(open_runtime, data_dir):
    """Guards leaving without a model: a name, a copy and the destroyed key are the directory's own."""
    talk(runtime := open_runtime())
    lines = runtime.export_conversation("trip")
    runtime.close()
    with Archive(data_dir=data_dir) as archive:
        archive.rename("trip", "journey")
        assert archive.import_conversation(lines) == "trip"
        assert archive.forget("journey") == []
    runtime = open_runtime()
    assert runtime.names() == ["trip"]
    assert runtime.conversation("trip").send("three").text == "hello there"


def test_it_leaves_alone_what_another_process_uses(open_runtime, data_dir):
    """Guards the lock: what a Runtime has open is read, and nothing of it is written."""
    talk(open_runtime())
    with Archive(data_dir=data_dir) as archive:
        assert "in use" in archive.degraded
        assert len(archive.conversation("trip").turns()) == 3
        for change in (lambda: archive.rename("trip", "x"), lambda: archive.forget("trip")):
            with pytest.raises(StoreError, match="in use"):
                change()


def test_an_empty_directory_stays_empty(data_dir):
    """Guards a look at nothing: no folder, no keys, no question for a passphrase."""
    with Archive(data_dir=data_dir, passphrase=lambda _question: 1 / 0) as archive:
        assert (archive.conversations(), archive.names()) == ([], [])
        with pytest.raises(ConversationError, match="none is kept yet"):
            archive.conversation("trip")
        with pytest.raises(StoreError, match="is kept in"):
            archive.import_conversation(["{}"])
    assert not data_dir.exists()


def test_a_branch_is_read_where_another_model_made_it(open_runtime):
    """Guards reading: the branches of a conversation that cannot be continued were out of reach."""
    chat = talk(runtime := open_runtime())
    head = chat.history()[-1].id
    read = runtime.conversation("trip", read_only=True)
    read.switch(1)
    assert [turn.user for turn in read.history()] == ["one", "two"]
    assert chat.history()[-1].id == head
    runtime.close()
    again = Runtime(engine_factory=FakeFactory(), config=runtime.config)
    with again:
        assert again.conversation("trip").history()[-1].user == "two again"


def test_a_place_that_may_not_be_looked_into_is_one_error(data_dir, monkeypatch):
    """Guards the chat's start: a folder that may not be searched ended it with a PermissionError."""

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(data_dir), "exists", refuse)
    with pytest.raises(StoreError, match=r"cannot look into .*data: Permission denied; choose --data-dir"):
        Archive(data_dir=data_dir)
