"""`edgekv backup`, `restore`, `export` and `import` as a person meets them."""

import json


def test_backup_restore_export_import(edgekv, data_dir, tmp_path):
    """Guards the documented way: a backup restored elsewhere reads the same, a file out and in again too."""
    edgekv("run", "hi", "-c", "trip")
    done = edgekv("backup", str(tmp_path / "safe"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "holds its key file" in done.stderr
    assert "nothing is overwritten" in edgekv("backup", str(tmp_path / "safe")).stderr
    other = tmp_path / "other"
    done = edgekv("restore", str(tmp_path / "safe"), "--data-dir", str(other), "--json")
    assert json.loads(done.stdout)["restored"] == str(other)
    exported = edgekv("export", "trip", "--data-dir", str(other)).stdout
    assert [json.loads(line).get("user") for line in exported.splitlines()] == [None, "hi"]
    assert edgekv("export", "trip", "--markdown").stdout.startswith("# trip\n")
    done = edgekv("import", "-", "--name", "copy", "--json", stdin=exported)
    assert json.loads(done.stdout) == {"imported": "copy"}
    assert "trip" in edgekv("import", "-", stdin=exported).stderr, "the name is taken"
    assert edgekv("export", "copy", "--out", str(tmp_path / "copy.jsonl")).returncode == 0
    assert (tmp_path / "copy.jsonl").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert edgekv("export", "copy", "--out", str(tmp_path / "link")).returncode == 1
    assert not (tmp_path / "elsewhere").exists(), "never through a link"
    assert edgekv("import", str(tmp_path / "copy.jsonl"), "--name", "third").returncode == 0
    missing = edgekv("import", str(tmp_path / "none.jsonl"))
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    refused = edgekv("export", "copy", "--out", str(tmp_path / "copy.jsonl"))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert edgekv("restore", str(tmp_path), "--data-dir", str(tmp_path / "new")).returncode == 1
    assert not (tmp_path / "new").exists()


def test_exports_of_other_programs_are_imported(edgekv, tmp_path):
    """Guards the first thing people try; it ended in an error about arrays."""
    parts = ["what is this?", {"content_type": "image_asset_pointer"}]
    mapping = {"a": {"message": {"author": {"role": "user"}, "content": {"parts": parts}}}}
    chats = [{"title": title, "current_node": "a", "mapping": mapping} for title in ("One", "Two")]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(chats))
    done = edgekv("import", str(path), "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["imported"]) == (0, ["One", "Two"]), done.stderr
    assert told["notices"][0].startswith("One: imported without 1 part")
    assert json.loads(edgekv("export", "One").stdout.splitlines()[1])["user"] == "what is this?"
    assert edgekv("import", str(path), "--name", "x").returncode == 2
    path.write_text(json.dumps(chats[:1]))
    assert "imported: x\n" in edgekv("import", str(path), "--name", "x").stderr
    piped = edgekv("import", "-", stdin=path.read_text())
    assert (piped.returncode, "not from stdin" in piped.stderr) == (2, True), piped.stderr
