"""Token ids to measure with: real text where the tokenizer is there, fixed random ids where it is not.

Knows the bundled excerpt. Speed does not depend on what the ids are; fidelity does, and says which were used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from edgekv.errors import ConfigError, ModelLoadError
from edgekv.models.config import ModelConfig
from edgekv.models.gguf import open_gguf
from edgekv.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

BUNDLED = "war_and_peace"
_FILES = {BUNDLED: "war_and_peace.txt", "memorybank": "texts/memorybank.txt"}
RANDOM = "random ids"
_TURN = "<|im_end|>\n<|im_start|>user\nQuestion {}: what happened next?<|im_end|>\n<|im_start|>assistant\n"
_NUM_TURNS = 64
_TURN_IDS = 18


@dataclass(frozen=True, slots=True)
class Text:
    """`ids` of a text, its `name`, and the ids of short new turns, each beginning differently."""

    name: str
    ids: list[int]
    turns: list[list[int]]

    def take(self, count: int) -> list[int]:
        """The first `count` ids. Raises ConfigError when the text is shorter."""
        if count > len(self.ids):
            raise ConfigError(
                f"{self.name} has only {len(self.ids)} tokens, {count} are needed; give a longer --text"
            )
        return self.ids[:count]

    def at_least(self, count: int) -> Text:
        """This text, repeated until it has `count` ids; the name then says so. For speeds, not for quality."""
        if count <= len(self.ids):
            return self
        times = -(-count // len(self.ids))
        return dataclasses.replace(self, name=f"{self.name}, repeated", ids=self.ids * times)


def load_text(model: Path, path: Path | None = None, bundled: str = BUNDLED) -> Text:
    """The ids of `path`, of a bundled text without one, random ones where no tokenizer is installed.

    Raises:
        ConfigError: the text cannot be read.
        ModelLoadError: the model file is damaged; or a text was asked for and there is no tokenizer.
    """
    with open_gguf(model) as file:
        config = ModelConfig.from_gguf(file)
        try:
            tokenizer = Tokenizer(file, config)
        except ModelLoadError:
            if path is not None or has_bindings():
                raise
            return _random(config.vocab_size)
    try:
        return Text(
            name=bundled if path is None else path.name,
            ids=tokenizer.encode(_read(path, bundled), special=False, add_bos=True),
            turns=[tokenizer.encode(_TURN.format(number), special=True) for number in range(_NUM_TURNS)],
        )
    finally:
        tokenizer.close()


def has_bindings() -> bool:
    """Whether llama.cpp's library can be loaded at all."""
    from edgekv.models.llama_vocab import load_bindings  # noqa: PLC0415  # only asked after a failure

    try:
        load_bindings()
    except ModelLoadError:
        return False
    return True


def _read(path: Path | None, bundled: str) -> str:
    if path is None:
        return files("edgekv.bench").joinpath(_FILES[bundled]).read_text("utf-8")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path} cannot be read as UTF-8 text: {error}") from error


def _random(vocab_size: int) -> Text:
    rng = np.random.default_rng(0)
    turns = rng.integers(0, vocab_size, (_NUM_TURNS, _TURN_IDS)).tolist()
    return Text(RANDOM, rng.integers(0, vocab_size, 1 << 17).tolist(), turns)
