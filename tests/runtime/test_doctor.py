"""The doctor on this machine, and on one where things are missing."""

import numpy as np

from edgekv.config import Config
from edgekv.doctor import examine


def test_every_finding_is_there_and_nothing_is_created(data_dir, monkeypatch):
    """Guards the report: names programs rely on, one line each, no directory made by looking."""
    monkeypatch.setattr("edgekv.doctor.MEASURE_S", 0.02)
    findings = {finding.name: finding for finding in examine(Config(data_dir=data_dir))}
    expected = {"python", "platform", "torch", "tokenizer", "model", "weights", "device", "device_budget"}
    expected |= {"kernels_cpu", "threads", "data_dir", "disk_free", "io", "memory_read", "disk_read"}
    assert expected <= set(findings)
    assert all("\n" not in finding.value + finding.why for finding in findings.values())
    assert not data_dir.exists()


def test_what_is_missing_is_named_and_the_rest_still_found(tmp_path, monkeypatch):
    """Guards the doctor against dying of the illness."""
    monkeypatch.setattr("edgekv.doctor.MEASURE_S", 0.02)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    findings = {f.name: f for f in examine(Config(data_dir=tmp_path, model="/nowhere.gguf"))}
    assert "/nowhere.gguf" in findings["model"].why
    assert "compiler" in findings["tokenizer"].why
    assert "only Linux" in findings["platform"].why
    assert {name for name in ("model", "tokenizer", "platform") if findings[name].is_fine} == set()
    assert findings["memory_read"].is_fine


def test_a_directory_in_use_is_told(tmp_path, monkeypatch):
    """Guards the lock: the doctor says who holds it."""
    from edgekv_storage import DataDir

    monkeypatch.setattr("edgekv.doctor.MEASURE_S", 0.02)
    with DataDir.open(tmp_path):
        findings = {f.name: f for f in examine(Config(data_dir=tmp_path))}
    assert "in use by process" in findings["data_dir"].why
    findings = {f.name: f for f in examine(Config(data_dir=tmp_path))}
    assert findings["data_dir"].is_fine


def test_looking_changes_nothing(tmp_path, monkeypatch):
    """Guards other processes: the doctor took the lock, wrote its number there and closed the directory."""
    from edgekv_storage import DataDir, Layout, Store, leaf_keys

    monkeypatch.setattr("edgekv.doctor.MEASURE_S", 0.02)
    folder = tmp_path / "data"
    layout = Layout(num_layers=1, leaf_bytes=2 << 20, dtype=1, fingerprint=b"t" * 32)
    with Store.open(folder, layout, quota_bytes=1 << 30, free_floor_bytes=0) as store:
        ids = np.arange(16, dtype=np.int32)
        store.append(b"s" * 16, leaf_keys(layout.fingerprint, b"exact", ids), None, ids, [bytes(2 << 20)])
        io_name = store.io_name
    (folder / "LOCK").write_text("1\n")
    folder.chmod(0o755)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    findings = {f.name: f for f in examine(Config(data_dir=folder))}
    after = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert after == before
    assert (folder / "LOCK").read_text() == "1\n"
    assert str(folder) in findings["disk_read"].why
    if "refuses" not in findings["io"].why:
        assert findings["io"].value == io_name
    (folder / "meta.json").unlink()
    examine(Config(data_dir=folder))
    assert not (folder / "meta.json").exists()
    DataDir.open(folder).close()


def test_a_drive_without_direct_reads_is_told(tmp_path, monkeypatch):
    """Guards the I/O line: it said what was asked for, not what the store falls back to."""
    monkeypatch.setattr("edgekv.doctor.MEASURE_S", 0.02)
    (tmp_path / "seg-0.kv").write_bytes(bytes(1 << 20))
    monkeypatch.setattr("edgekv_storage.reads_directly", lambda path: False)
    findings = {f.name: f for f in examine(Config(data_dir=tmp_path))}
    assert findings["io"].value == "pread (16 threads, page cache)"
    assert "refuses direct reads" in findings["io"].why
    assert "page cache" in findings["disk_read"].why
