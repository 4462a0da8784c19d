"""The examples run as they stand, over a fake engine, and the API reference names all there is."""

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from fakes import FakeFactory
from patience import PATIENCE_S

import edgekv
from edgekv.reference import reference

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def faked(monkeypatch, data_dir):
    """`edgekv.Runtime` and `AsyncRuntime` with a fake engine; returns a function that loads an example."""
    for name in ("Runtime", "AsyncRuntime"):
        real = getattr(edgekv, name)

        def fake(real=real, **options):
            return real(**{"engine_factory": FakeFactory(), "data_dir": data_dir, **options})

        monkeypatch.setattr(edgekv, name, fake)
    archive = edgekv.Archive
    monkeypatch.setattr(edgekv, "Archive", lambda **options: archive(data_dir=data_dir, **options))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_async_script(faked, capsys):
    """Guards the example against an API that moved on: both questions are answered, the second reuses the text."""
    asyncio.run(faked("async_script").main("x" * 500, ["what?", "why?"]))
    shown = capsys.readouterr()
    assert shown.out.count("hello there") == 2
    assert "tokens, 538 of them reused" in shown.err


def test_the_window(faked, monkeypatch):
    """Guards the hook for GUI loops as the example uses it: everything is shown, in Tk's thread."""
    pytest.importorskip("tkinter")
    module = faked("tk_chat")
    for name in ("tk", "ttk", "scrolledtext"):
        monkeypatch.setattr(module, name, MagicMock())
    with edgekv.Runtime() as runtime:
        window = module.Window(MagicMock(), runtime)
        window._entry.get.return_value = "hi"
        window.send()
        shown = []
        while not any(text.endswith("\n") for text in shown[1:]):
            window._soon.get(timeout=PATIENCE_S)()
            shown = [call.args[1] for call in window._text.insert.call_args_list]
    assert "".join(shown) == "> hi\nhello there\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tk_chat.py"], "there is no display for a window"),
        (["async_script.py", "nowhere.txt", "what?"], "nowhere.txt"),
        (["async_script.py", "async_script.py", "what?"], "no file and no found model is called 'nowhere'"),
    ],
)
def test_what_an_example_cannot_do_is_one_line(arguments, told, data_dir):
    """Guards the first thing a person tries, on a machine without a display, a file or a model: a traceback."""
    pytest.importorskip("tkinter")
    environ = {
        name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")
    }
    environ |= {"EDGEKV_MODEL": "nowhere", "EDGEKV_DATA_DIR": str(data_dir)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=EXAMPLES, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert told in done.stderr


def test_the_notebook(faked, capsys):
    """Guards the cells, run in order; none was committed with an output."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "cell", "exec"), names)
    assert capsys.readouterr().out.count("[stop, exact]") == 3
    assert [branch.num_turns for branch in names["chat"].branches()] == [2, 3]


def test_the_guides_blocks(faked, capsys):
    """Guards docs/programs.md: its blocks run, one after the other, as it says."""
    text = (EXAMPLES.parent / "docs/programs.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/programs.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "trip ['Plan day 2', 'And day 3?'" in shown
    assert shown.endswith("hello there\n")
    assert names["again"].usage.reused_tokens > 60


def test_the_reference_names_everything():
    """Guards the generated reference: every public name and method is in it, with its docstring."""
    text = reference()
    assert [name for name in edgekv.__all__ if not name.startswith("__") and f"### {name}" not in text] == []
    assert "stream_reply(\n    messages: Sequence[tuple[str, str]],\n    *," in text
    assert "The last event of every stream." in text
    assert " at 0x" not in text
