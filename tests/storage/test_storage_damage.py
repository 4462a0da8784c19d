"""Whatever happens to the files, a leaf is right, reported or not found; the store opens and goes on."""

from __future__ import annotations

import errno
import os
import random
import shutil

import pytest
from storage_fixtures import OTHER, SEQUENCE, TINY, Model, open_store, segments_in

from edgekv_storage import UnknownFormat, known_losses
from edgekv_storage.io import blocking

pytestmark = pytest.mark.usefixtures("encryption", "io")


def _filled(data_dir, *turns: int) -> Model:
    model = Model(TINY)
    with open_store(data_dir) as store:
        for count in turns:
            model.append(store, count)
    return model


def _flip(path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def test_a_flipped_bit_anywhere_is_detected_or_harmless(data_dir, copy):
    """Guards every byte of every file: 100 random flips, each with the index and again without it."""
    model = _filled(data_dir, 2, 3)
    files = [f for f in data_dir.iterdir() if f.is_file() and f.stat().st_size]
    rng = random.Random(7)
    lost = 0
    for number in range(100):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(data_dir, copy)
        victim = rng.choice([f for f in files if f.name.startswith("seg")] * 3 + files)
        _flip(copy / victim.name, rng.randrange(victim.stat().st_size), rng.randrange(8))
        if number % 2:
            (copy / "index.db").unlink()
        try:
            store = open_store(copy)
        except UnknownFormat:
            assert victim.name == "meta.json"
            continue
        with store:
            places = model.find(store)
            right, damaged = model.read(store, places)
            lost += 15 - right
            assert right + damaged == len(places) * 3
    assert 0 < lost < 100 * 15 / 2


def test_a_damaged_leaf_is_dead_for_good(data_dir):
    """Guards that a leaf found damaged once is not offered again, nor after a restart."""
    model = _filled(data_dir, 4)
    path = segments_in(data_dir)[0]
    _flip(path, 4096 + 4096 + 2 * 1024 + 5)  # header page, tables page, third leaf of layer 0
    with open_store(data_dir) as store:
        places = model.find(store)
        assert model.read(store, places) == (11, 1)
        assert len(model.find(store)) == 2
        assert store.stats().damaged_leaves == 1
        assert len(store.check()) == 1
    with open_store(data_dir) as store:
        assert len(model.find(store)) == 2
        repaired = Model(TINY, ids=model.ids[: 2 * 16])
        repaired.append(store, 1)
        assert len(repaired.find(store)) == 3


def test_a_leaf_written_again_replaces_the_damaged_one(data_dir):
    """Guards recomputation: the same key at a newer place must win over the dead one."""
    model = _filled(data_dir, 3)
    _flip(segments_in(data_dir)[0], 4096 + 4096 + 5)
    with open_store(data_dir) as store:
        assert model.read(store, model.find(store)) == (8, 1)
        again = Model(TINY)
        again.append(store, 3)
        assert again.keys == model.keys
        assert model.read(store, model.find(store)) == (9, 0)


def test_an_older_copy_stands_in_for_a_damaged_one(data_dir):
    """Guards compaction cut off by a power loss: its torn copy hid the good source until the next start."""
    model = _filled(data_dir, 3)
    with open_store(data_dir) as store:
        Model(TINY).append(store, 3)
    second = segments_in(data_dir)[1]
    _flip(second, 4096 + 4096 + 1024 + 5)  # the second leaf
    with open_store(data_dir) as store:
        assert model.read(store, model.find(store)) == (8, 1)
        assert [place.segment for place in model.find(store)] == [2, 1, 2]
        assert model.read(store, model.find(store)) == (9, 0)
        store._on_damage(model.find(store)[1:2])
        assert len(model.find(store)) == 1


@pytest.mark.parametrize("keep_index", [True, False])
def test_files_cut_or_extended_at_any_boundary(data_dir, copy, keep_index):
    """Guards truncation and junk behind the end: the good prefix is found and right."""
    model = _filled(data_dir, 1, 2, 1)
    name = segments_in(data_dir)[0].name
    size = (data_dir / name).stat().st_size
    cuts = [at + d for at in range(0, size + 1, 4096) for d in (-1, 0, 1) if 0 <= at + d <= size + 1]
    for cut in cuts:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(data_dir, copy)
        os.truncate(copy / name, cut)
        if not keep_index:
            (copy / "index.db").unlink()
        with open_store(copy) as store:
            places = model.find(store)
            assert model.read(store, places) == (len(places) * 3, 0)
            assert store.check() == []
            if cut >= size:
                assert len(places) == 4


def test_the_index_is_rebuilt(data_dir):
    """Guards the promise that index.db is disposable: gone, empty, garbage, or of another version."""
    model = _filled(data_dir, 2, 3)
    for content in (None, b"", b"garbage" * 1000):
        (data_dir / "index.db").unlink()
        if content is not None:
            (data_dir / "index.db").write_bytes(content)
        with open_store(data_dir) as store:
            places = model.find(store)
            assert model.read(store, places) == (15, 0)
        with open_store(data_dir) as store:
            assert model.find(store) == places
            assert store.take_notices() == []


def test_swapped_segments_serve_nothing_wrong(data_dir):
    """Guards headers that name their segment: exchanged contents are not believed."""
    one, two = Model(TINY), Model(TINY, OTHER, seed=9)
    with open_store(data_dir) as store:
        one.append(store, 2)
        two.append(store, 2)
    a, b = segments_in(data_dir)
    a.rename(data_dir / "x")
    b.rename(a)
    (data_dir / "x").rename(b)
    (data_dir / "index.db").unlink()
    with open_store(data_dir) as store:
        assert one.find(store) == two.find(store) == []
        assert len(store.take_notices()) == 2
        assert len(list((data_dir / "quarantine").iterdir())) == 2
        one.append(store, 1)
        store.forget(SEQUENCE)
        assert list((data_dir / "quarantine").iterdir()) == []


def test_forgetting_empties_the_quarantine_though_no_segment_is_left(data_dir):
    """Guards privacy: with every segment of the conversation in quarantine, `forget` left its bytes there."""
    _filled(data_dir, 2)
    _flip(segments_in(data_dir)[0], 60)
    (data_dir / "index.db").unlink()
    with open_store(data_dir) as store:
        assert len(list((data_dir / "quarantine").iterdir())) == 1
        assert store.forget(SEQUENCE) is False
        assert list((data_dir / "quarantine").iterdir()) == []


@pytest.mark.parametrize(("code", "is_found_later"), [(errno.EMFILE, True), (errno.EIO, False)])
def test_tables_that_could_not_be_read_are_dead_only_if_the_drive_lost_them(
    data_dir, monkeypatch, code, is_found_later
):
    """Guards good records: too many open files made a whole record dead for good."""
    model = _filled(data_dir, 3)

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with open_store(data_dir, io="pread") as store:
        monkeypatch.setattr(blocking, "read_all", refuse)
        assert model.find(store) == []
        monkeypatch.undo()
        assert len(model.find(store)) == (3 if is_found_later else 0)
        assert store.stats().damaged_leaves == (0 if is_found_later else 3)
    with open_store(data_dir) as store:
        assert len(model.find(store)) == (3 if is_found_later else 0)


def test_foreign_and_newer_segments_are_left_alone(data_dir):
    """Guards other people's bytes: a planted file, a link, a newer format stay, with one line each."""
    _filled(data_dir, 1)
    newer = bytearray(segments_in(data_dir)[0].read_bytes())
    newer[8] = 3
    planted = {
        "seg-00000000000000f0-0000000000000001.kv": b"not ours" * 1000,
        "seg-00000000000000f1-0000000000000001.kv": bytes(newer),
    }
    empty = (
        data_dir / "seg-00000000000000f3-0000000000000001.kv"
    )  # as a kill right after its making leaves it
    empty.touch()
    for name, data in planted.items():
        (data_dir / name).write_bytes(data)
    link = data_dir / "seg-00000000000000f2-0000000000000001.kv"
    link.symlink_to("/etc/hostname")
    with open_store(data_dir) as store:
        notices = store.take_notices()
        assert [n.split(" ")[0] for n in notices] == sorted([*planted, link.name])
        model = Model(TINY, OTHER)
        assert model.append(store, 1)[0].segment > 0xF3
        assert {name: (data_dir / name).read_bytes() for name in planted} == planted
        assert link.is_symlink()
        assert not empty.exists()


@pytest.mark.parametrize("has_index", [True, False])
def test_what_went_to_quarantine_is_told_as_lost(data_dir, has_index):
    """Guards the line a person gets: whose KV was set aside, and how much, also at every later start."""
    _filled(data_dir, 2, 3)
    [segment] = segments_in(data_dir)
    size = segment.stat().st_size
    _flip(segment, 60)  # the sequence id in its header
    with segment.open("ab") as file:  # or the index would be believed without a look at it
        file.write(b"x")
    if not has_index:
        for path in data_dir.glob("index.db*"):
            path.unlink()
    for _ in range(2):
        with open_store(data_dir) as store:
            losses = [(loss.why, loss.num_tokens, loss.num_bytes) for loss in store.forgotten(SEQUENCE)]
            assert losses == ([("it was damaged on disk", 80, size)] if has_index else [])
        assert segments_in(data_dir) == []
    assert {i: len(known) for i, known in known_losses(data_dir).items()} == (
        {SEQUENCE: 1} if has_index else {}
    )


def test_a_planted_segment_costs_nobody_anything(data_dir):
    """Guards against losses that a file in the directory merely claims."""
    _filled(data_dir, 2)
    [segment] = segments_in(data_dir)
    planted = segment.with_name("seg-00000000000000ff-00000000000000ff.kv")
    planted.write_bytes(segment.read_bytes())
    with open_store(data_dir) as store:
        assert any("quarantine" in notice for notice in store.take_notices())
        assert store.forgotten(SEQUENCE) == []


def test_a_damaged_schema_of_the_index_is_told_in_one_line(data_dir):
    """Guards notices: SQLite quotes what it cannot parse, with its line ends."""
    model = _filled(data_dir, 2)
    path = data_dir / "index.db"
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE dead", b"CREATE TABLE `ead"))
    with open_store(data_dir) as store:
        (notice,) = store.take_notices()
        assert "the index is rebuilt" in notice
        assert "\n" not in notice
        assert model.read(store, model.find(store)) == (6, 0)
