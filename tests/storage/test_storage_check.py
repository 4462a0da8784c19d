"""The checker: a second reader of docs/format.md, and what it can mend."""

import re
import shutil
from pathlib import Path

import pytest
from storage_fixtures import NAMESPACE, PAGED, SEQUENCE, TINY, Model, open_store, segments_in

import edgekv_storage
from edgekv_storage import DataDir, KeyChain, LeafPlace, Pieces, Transcripts
from edgekv_storage.check.check import check_directory, fix_directory


def _filled(path, *, is_closed=True):
    """A directory with a conversation of two turns and two records of leaves; open ones are copied away."""
    crashed = path.with_name("crashed")
    with DataDir.open(path) as directory:
        keys = KeyChain.open(directory, protection="file")
        with Transcripts.open(directory, keys) as transcripts:
            row = transcripts.create_conversation("talk", SEQUENCE)
            transcripts.append_turn(row.id, None, b"hello")
            transcripts.append_turn(row.id, None, b"again")
            model = Model(TINY)
            with open_store(directory, keys=keys) as store:
                model.append(store, 3, sections={7: b"abstract" * 10, 8: Pieces(b"keys" * 60, 60, 3)})
                model.append(store, 2)
                store.flush()
                if not is_closed:
                    shutil.copytree(path, crashed)
    return path if is_closed else crashed


def _check(path, *, fix=False):
    with DataDir.open(path) as directory:
        keys = KeyChain.open(directory, protection="file")
        checked = check_directory(directory, keys)
        return checked, fix_directory(directory, keys, checked) if fix else []


def test_it_shares_no_code_with_the_reader_it_checks():
    """Guards its independence: a mistake in the store's own reading must not be made again."""
    source = (Path(edgekv_storage.__file__).parent / "check" / "segmentfile.py").read_text()
    assert re.findall(r"edgekv_storage\.\w+", source) == []


def test_a_good_directory_is_clean(data_dir):
    """Guards the checker's reading of the format: every record is found where it lies, and opens."""
    checked, _ = _check(_filled(data_dir))
    assert checked.problems == []
    (segment,) = checked.segments
    assert (segment.state, segment.is_sealed, segment.is_encrypted) == ("good", True, True)
    assert next((r.number, r.num_leaves, r.state, r.offset) for r in segment.records) == (0, 3, "good", 4096)
    assert [r.num_leaves for r in segment.records] == [3, 2]
    assert segment.records[1].offset == 4096 + segment.records[0].num_bytes
    shown = checked.as_dict()
    assert shown["segments"][0]["conversation"] == "talk"
    assert [c["num_turns"] for c in shown["conversations"]] == [2]


@pytest.mark.parametrize("layout", [TINY, PAGED])
def test_plain_segments_are_checked_too(data_dir, layout):
    """Guards --encryption off: the same records with checksums."""
    with open_store(data_dir, layout) as store:
        Model(layout).append(store, 4)
    with DataDir.open(data_dir) as directory:
        checked = check_directory(directory, None)
    assert checked.problems == []
    assert [r.num_leaves for r in checked.segments[0].records] == [4]


def test_every_flipped_byte_of_a_segment_is_found_or_padding(copy):
    """Guards completeness: a flip anywhere but in padding is a problem, in a section a note; leaves are named."""
    path = _filled(copy)
    (file,) = segments_in(path)
    good = file.read_bytes()
    padding = found = 0
    with DataDir.open(path) as directory:
        keys = KeyChain.open(directory, protection="file")
        for at in range(0, len(good), 97):
            file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            checked = check_directory(directory, keys)
            if checked.problems or any("section" in note for note in checked.notes):
                found += 1
            else:
                padding += 1
                assert good[at] == 0, f"byte {at} is not padding"
    assert found > 100
    assert padding > 100


def test_a_damaged_leaf_costs_only_itself(data_dir):
    """Guards --fix: for one bad leaf it threw away all others of the segment, and said nothing of a loss."""
    path = _filled(data_dir)
    (file,) = segments_in(path)
    checked, _ = _check(path)
    first = checked.segments[0].records[0]
    data = bytearray(file.read_bytes())
    data[first.offset + first.num_bytes - 4096 + 1030] ^= 1  # the last layer's second leaf
    file.write_bytes(data)
    for _ in range(2):  # the second time it is known, and not lost again
        checked, done = _check(path, fix=True)
        assert checked.segments[0].records[0].damaged_leaves == [(2, 1)]
        assert any("1 damaged leaves" in line for line in done)
        assert not any("quarantine" in line for line in done)
        assert segments_in(path) == [file]
    assert checked.problems == []
    assert any("they are known" in note for note in checked.notes)
    assert [c.num_turns for c in checked.conversations] == [2]
    with open_store(path, keys=None) as store:
        assert [loss.num_tokens for loss in store.forgotten(SEQUENCE)] == [16]
        assert store.live_bytes == file.stat().st_size


@pytest.mark.parametrize("at", ["header", "tables"])
def test_a_damaged_record_costs_only_its_own_leaves(data_dir, at):
    """Guards --fix: it moved whole segments away that the store read, but for one record, well."""
    path = _filled(data_dir)
    (file,) = segments_in(path)
    data = bytearray(file.read_bytes())
    data[4096 + (60 if at == "header" else 300)] ^= 1
    file.write_bytes(data)
    for _ in range(2):  # the second time it is known, and not lost again
        _, done = _check(path, fix=True)
        assert any("3 damaged leaves" in line for line in done)
        assert segments_in(path) == [file]
    checked, _ = _check(path)
    assert (checked.problems, checked.segments[0].records[0].state) == ([], "damaged")
    assert any("they are known" in note for note in checked.notes)
    with DataDir.open(path) as directory, open_store(directory, keys=KeyChain.open(directory)) as store:
        assert store.stored_paths(SEQUENCE, NAMESPACE) == []  # nothing leads to the second record any more
        assert (store._catalog.record(1, 0), len(store._catalog.record(1, 1).keys)) == (None, 2)
        assert [loss.num_tokens for loss in store.forgotten(SEQUENCE)] == [3 * 16]


@pytest.mark.parametrize("kind", [7, 8])
def test_a_damaged_section_costs_no_leaf(data_dir, kind):
    """Guards --fix: a flip in what can be made from the leaves again threw a whole segment away."""
    path = _filled(data_dir)
    (file,) = segments_in(path)
    with DataDir.open(path) as directory, open_store(directory, keys=KeyChain.open(directory)) as store:
        store.holds(SEQUENCE, b"")
        store._readers.load_tables([LeafPlace(1, 0, 0)])
        record = store._catalog.record(1, 0)
        (section,) = (s for s in record.tables.sections if s.kind == kind)
        offset = record.entry.offset + section.offset
    data = bytearray(file.read_bytes())
    data[offset + 3] ^= 1
    file.write_bytes(data)
    checked, done = _check(path, fix=True)
    assert checked.problems == []
    assert any(f"section {kind} " in note and "its leaves are good" in note for note in checked.notes)
    assert not any("quarantine" in line or "damaged" in line for line in done)
    assert segments_in(path) == [file]
    with open_store(path, keys=None) as store:
        assert store.forgotten(SEQUENCE) == []


def test_a_segment_that_cannot_be_walked_is_set_aside(data_dir):
    """Guards --fix: the segment goes, its leaves count as lost once, the index and the text stay right."""
    path = _filled(data_dir)
    (file,) = segments_in(path)
    checked, _ = _check(path)
    data = bytearray(file.read_bytes())
    for record in checked.segments[0].records:
        data[record.offset + 60] ^= 1  # no record is left that can be read
    file.write_bytes(data)
    _, done = _check(path, fix=True)
    assert any("quarantine" in line for line in done)
    assert segments_in(path) == []
    checked, _ = _check(path)
    assert checked.problems == []
    assert [c.num_turns for c in checked.conversations] == [2]
    with open_store(path, keys=None) as store:
        assert [loss.num_tokens for loss in store.forgotten(SEQUENCE)] == [5 * 16]


def test_what_a_kill_left_is_no_problem_and_sealed_by_fix(data_dir):
    """Guards unsealed segments: whole records count, a cut one is named, and --fix seals."""
    path = _filled(data_dir, is_closed=False)
    (file,) = segments_in(path)
    checked, _ = _check(path)
    assert [s.state for s in checked.segments] == ["unsealed"]
    assert checked.problems == []
    file.write_bytes(file.read_bytes()[:-4096])
    checked, _done = _check(path, fix=True)
    assert [r.state for r in checked.segments[0].records] == ["good", "cut short"]
    assert len(checked.problems) == 1
    checked, _ = _check(path)
    assert checked.problems == []


@pytest.mark.parametrize("name", ["transcripts.db", "index.db", "meta.json", "keys.db"])
def test_damage_beside_the_segments_is_found(data_dir, name):
    """Guards the other files: each is looked at, and a damaged one does not stop the look at the rest."""
    path = _filled(data_dir)
    with DataDir.open(path) as directory:
        keys = KeyChain.open(directory, protection="file")
        file = path / name
        file.write_bytes(file.read_bytes()[:1] + b"\xff" * 3000)
        checked = check_directory(directory, keys)
    assert name in {problem.file for problem in checked.problems}
    assert len(checked.segments) == 1


def test_a_damaged_turn_is_named(data_dir):
    """Guards transcripts: the conversation and the turn are named, the others are listed as good."""
    path = _filled(data_dir)
    with DataDir.open(path) as directory:
        keys = KeyChain.open(directory, protection="file")
        with Transcripts.open(directory, keys) as transcripts:
            transcripts.create_conversation("other", b"o" * 16)
            transcripts._db.execute("UPDATE turns SET created = created + 1 WHERE id = 2")
        checked = check_directory(directory, keys)
    assert [(c.name, c.state, c.damaged_turns) for c in checked.conversations] == [
        ("talk", "damaged turns", [2]),
        ("other", "good", []),
    ]
    assert any("'talk'" in problem.reason for problem in checked.problems)


def test_a_segment_without_its_key_is_named(data_dir):
    """Guards destroyed keys: the file is told apart from a damaged one, and --fix sets it aside."""
    path = _filled(data_dir)
    with DataDir.open(path) as directory:
        keys = KeyChain.open(directory, protection="file")
        keys.destroy(SEQUENCE)
        checked = check_directory(directory, keys)
        assert [s.state for s in checked.segments] == ["unreadable"]
        fix_directory(directory, keys, checked)
    assert segments_in(path) == []
