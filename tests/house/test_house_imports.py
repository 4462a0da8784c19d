"""What importing costs and who may import whom."""

import subprocess
import sys
from pathlib import Path

import edgekv
from edgekv.reference import reference

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch", "numpy", "gguf", "llama_cpp", "jinja2", "triton", "textual", "rich",
    "sqlite3", "zipfile", "starlette", "uvicorn",
)  # fmt: skip


def test_importing_edgekv_loads_nothing_heavy():
    """Guards the 0.3 s of `import edgekv`: one careless top-level import of torch costs a desktop app a second."""
    code = f"import sys, edgekv; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_answers_help_without_torch():
    """Guards `edgekv --help`: it waited a second for torch, although it needs none of it."""
    code = "import sys, edgekv.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_exist_and_are_sorted():
    """Guards `from edgekv import *` and the documentation against a name that was renamed away."""
    assert list(edgekv.__all__) == sorted(edgekv.__all__)
    assert [name for name in edgekv.__all__ if not hasattr(edgekv, name)] == []


def test_the_api_reference_is_what_the_docstrings_say():
    """Guards docs/api.md: it was a version behind, since nothing compared the two."""
    assert (ROOT / "docs" / "api.md").read_text() == reference(), "python -m edgekv.reference > docs/api.md"


def test_import_rules_hold():
    """Guards the directions between packages: a cycle is cheap to make and expensive to undo."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
