"""A tiny model and small measurements of the machine: what is tested is the commands, never the speed."""

import json

import pytest
from gguf_writer import write_tiny_gguf

from edgekv.bench import child_tasks, machine, resume, tiers
from edgekv.bench.child import _options
from edgekv.bench.child_speech import Task
from edgekv.cli.main import _run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return write_tiny_gguf(path, "llama", "Q4_1", heads=4, kv_heads=2, head_dim=64, context=1024)


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch):
    monkeypatch.setattr(machine, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "DISK_BYTES", 1 << 20)


@pytest.fixture
def children_in_process(monkeypatch):
    """Tasks of child processes without the seconds of starting one."""

    def run_child(kind, config, model, **fields):
        return child_tasks.run(Task(kind=kind, options=_options(config), model=str(model), **fields))

    for module in (resume, tiers):
        monkeypatch.setattr(module, "run_child", run_child)


@pytest.fixture
def bench(tiny_model, data_dir, capsys):
    """Run `edgekv bench ... --json`; its exit code and its one object."""

    def run(*arguments, model=tiny_model):
        everything = ["bench", *arguments, "--json", "--data-dir", str(data_dir), "--model", str(model)]
        code = _run(everything)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1, lines
        return code, json.loads(lines[0])

    return run
