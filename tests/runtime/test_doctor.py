"""The doctor on this machine, and on one where things are missing."""

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
