"""The real model: what privacy leaves on disk, and whether the arithmetic is right."""

import json

from edgekv import Runtime
from edgekv.bench import machine
from edgekv.cli.main import _run


def test_private_conversation_leaves_no_bytes(data_dir):
    """Guards `private`: no file holds the words or any KV; a kept conversation beside it does leave both.

    Without encryption, which would hide the words of either.
    """
    word = "Quetzalcoatlus"
    with Runtime(data_dir=data_dir, temperature=0, threads=2, max_tokens=4, encryption="off") as runtime:
        runtime.conversation("secret", private=True).send(f"Remember {word}. " * 20)
        runtime.conversation("kept").send("Remember Lisbon. " * 20)
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".kv"]) == 1
    assert not any(word.encode() in path.read_bytes() for path in files)
    assert any(b"Lisbon" in path.read_bytes() for path in files)


def test_forget_leaves_no_bytes(data_dir):
    """Guards forget: neither the words nor the KV of the conversation are in any file afterwards."""
    with Runtime(data_dir=data_dir, temperature=0, max_tokens=4, encryption="off") as runtime:
        runtime.conversation("old").send("Remember Quetzalcoatlus. " * 20)
        runtime.forget("old")
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    assert not any(b"Quetzalcoatlus" in path.read_bytes() for path in files)
    assert [path for path in files if path.suffix == ".kv"] == []


def test_fidelity(data_dir, monkeypatch, capsys):
    """Guards the arithmetic on real weights and text: close to llama.cpp on the same file, closer to exact fp32
    arithmetic, and nearly always the token that this would choose. (2,000 positions: `edgekv bench fidelity`.)"""
    monkeypatch.setattr(machine, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "DISK_BYTES", 1 << 20)
    options = ["--positions", "200", "--peer", "llama.cpp", "--threads", "2", "--data-dir", str(data_dir)]
    code = _run(["bench", "fidelity", *options, "--json"])
    told = capsys.readouterr().out
    assert code == 0, told
    ours = {row["metric"]: row["ours"] for row in json.loads(told)["rows"]}
    assert ours["kl_nats"] <= 0.01
    assert ours["kl_nats_reference"] <= 0.001
    assert ours["top1_agreement_reference"] >= 0.99


def test_more_memory_than_there_is_is_one_line(data_dir, capsys):
    """Guards "internal error OSError": a limit may be larger than what this machine has."""
    code = _run(["run", "hi", "--host-budget", "4096TiB", "--data-dir", str(data_dir), "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert code == 1
    assert error["type"] == "OutOfMemory"
    assert "smaller --device-budget and --host-budget" in error["message"]
