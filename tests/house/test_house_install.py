"""What a newcomer types, and what the installation says when it cannot work."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _command(marker):
    blocks = re.findall(rf"<!-- {marker} -->\n```\w*\n(.+?)\n```\n<!-- end -->", README, re.DOTALL)
    assert len(blocks) == 1, marker
    return blocks[0]


def test_two_commands_on_a_fresh_machine():
    """Guards the promise of two commands: each is one line, from nothing to a chat or to passing tests."""
    for marker, last in (("the chat command", "edgekv chat"), ("the test command", "-m pytest")):
        command = _command(marker)
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert command.endswith(last)


def test_ci_runs_the_readme():
    """Guards the README from rotting: CI takes its command from there and has none of its own."""
    script = (ROOT / ".ci/run").read_text()
    assert "<!-- the test command -->" in script
    assert not re.search(r"\bpip\b|pytest", script)


def _fake_programs(folder, names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs setup.py with these programs on the PATH; returns what it asks setuptools to build."""
    setuptools = pytest.importorskip("setuptools")
    asked = {}
    monkeypatch.setattr(setuptools, "setup", lambda **what: asked.update(what))
    monkeypatch.setattr("sysconfig.get_path", lambda _kind: str(tmp_path / "site-packages"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.chdir(ROOT)

    def run(*programs):
        monkeypatch.setenv("PATH", _fake_programs(tmp_path / "bin", programs))
        runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
        return asked

    return run


@pytest.mark.parametrize("programs", [(), ("gcc",), ("c++",)])
def test_a_missing_compiler_is_one_clear_line(install, programs):
    """Guards the first minute of a new user: pip printed pages of errors after compiling for minutes."""
    with pytest.raises(SystemExit) as stop:
        install(*programs)
    message = stop.value.code
    assert message.startswith("edgekv: no C and C++ compiler found")
    assert "\n" not in message


@pytest.mark.parametrize("programs", [("cc", "c++"), ("clang", "clang++")])
def test_the_native_extension_is_built_but_may_fail(install, programs):
    """Guards users whose compiler cannot do it: they get the torch kernels, not a failed installation."""
    (extension,) = install(*programs)["ext_modules"]
    assert extension.name == "edgekv_kernels._native"
    assert extension.optional
    assert all((ROOT / name).exists() for name in extension.sources + extension.depends)


def test_no_compiler_is_needed_where_the_tokenizer_is_there(install, tmp_path):
    """Guards machines without a compiler whose owner installed a prebuilt llama-cpp-python first."""
    (tmp_path / "site-packages" / "llama_cpp").mkdir(parents=True)
    assert install()["ext_modules"]
