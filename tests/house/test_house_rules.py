"""Rules of CONTRIBUTING.md that no linter knows."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import edgekv

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / part for part in ("edgekv", "kernels", "storage", "tui")]
SOURCES = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BANNED_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "diskcache", "joblib"}
LONGEST_FILE = 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_can_unpickle(path):
    """Guards against code execution from a planted file: neither pickle nor what calls it may come in."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load")
        assert not {name.split(".")[0] for name in names} & BANNED_MODULES


def test_files_stay_small():
    """Guards readability: the file that everyone appends to is the one that rots."""
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert {str(path): count for path, count in lengths.items() if count > LONGEST_FILE} == {}
    assert [path for path in lengths if path.stem in ("utils", "helpers", "misc", "common")] == []


def test_documents_name_files_that_exist():
    """Guards the map against drifting from the land: each `path/with.ext` in a document must be there."""
    pattern = re.compile(r"`((?:edgekv|kernels|storage|tui|tests|docs|\.ci)/[\w./]+)`")
    named = [
        (document.name, name) for document in DOCUMENTS for name in pattern.findall(document.read_text())
    ]
    missing = [(document, name) for document, name in named if not (ROOT / name).exists()]
    assert missing == []


def test_nothing_says_where_packages_come_from():
    """Guards installation behind a mirror or offline: indexes are the user's pip settings, never ours."""
    settings = ("index-url", "find-links", "--extra-index", "pypi.org", "pythonhosted", "download.pytorch")
    files = [*DOCUMENTS, ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / ".ci/run", *SOURCES]
    found = [(path.name, text) for path in files for text in settings if text in path.read_text()]
    assert found == []


def test_the_version_is_one():
    """Guards bug reports: `edgekv --version` must be the version that was installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == edgekv.__version__


def test_links_between_documents_lead_somewhere():
    """Guards the guide: each relative link and picture in a document is a file that is there."""
    links = [(path, link) for path in DOCUMENTS for link in re.findall(r"\]\(([^)#\s]+)", path.read_text())]
    local = [(path, link) for path, link in links if ":" not in link]
    assert [(path.name, link) for path, link in local if not (path.parent / link).exists()] == []
