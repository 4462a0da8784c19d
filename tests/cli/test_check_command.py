"""`edgekv check`: its exit status, and the one JSON object."""

import json
import sqlite3


def test_clean_damaged_and_not_checked(edgekv, data_dir):
    """Guards scripts that rely on the exit status: 0 clean, 1 problems, 2 could not be checked."""
    missing = edgekv("check", "--json")
    assert missing.returncode == 2
    assert json.loads(missing.stdout)["error"]["type"] == "StoreError"
    assert edgekv("run", "hello", "-c", "a").returncode == 0
    clean = edgekv("check", "--json")
    assert clean.returncode == 0
    assert [(c["name"], c["state"]) for c in json.loads(clean.stdout)["conversations"]] == [("a", "good")]
    db = sqlite3.connect(data_dir / "transcripts.db")
    db.execute("UPDATE turns SET created = created + 1 WHERE id = 1")
    db.commit()
    db.close()
    damaged = edgekv("check")
    assert damaged.returncode == 1
    assert "problem: transcripts.db" in damaged.stdout
    assert "turn 1" in damaged.stdout
    fixed = json.loads(edgekv("check", "--fix", "--json").stdout)
    assert (fixed["is_clean"], len(fixed["left"])) == (False, 1), "text is never mended by guessing"


def test_a_missing_keys_db_is_named(edgekv, data_dir):
    """Guards the advice: the check spoke of --encryption off, which nobody gave, and never of keys.db."""
    edgekv("run", "hello", "-c", "a")
    (data_dir / "keys.db").unlink()
    for args in (["check"], ["check", "--fix"]):
        done = edgekv(*args)
        assert done.returncode == 1
        assert "problem: keys.db at 0: it is missing" in done.stdout
        assert "--encryption" not in done.stdout + done.stderr


def test_planted_names_reach_the_terminal_as_text(edgekv, data_dir):
    """Guards the terminal: a file's name could clear the screen and show a clean check."""
    edgekv("run", "hello", "-c", "a")
    (data_dir / "seg-\x1b[2J.kv").write_bytes(b"x")
    done = edgekv("check")
    assert "\x1b" not in done.stdout + done.stderr
    assert r"seg-\x1b[2J.kv" in done.stdout
