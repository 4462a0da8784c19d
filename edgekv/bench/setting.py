"""What every command starts from: the options, the model, the text, the peer, the place for scratch files.

Knows how an engine is made for a measurement and taken down again; measures nothing itself.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import tempfile
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import edgekv_kernels as kernels
from edgekv.bench.peer import LlamaCpp, peer_version
from edgekv.bench.report import Labels
from edgekv.bench.text import Text, has_bindings, load_text
from edgekv.cache.leaf import LeafShape, num_columns
from edgekv.conversation.unlock import Unlock
from edgekv.engine.build import Model, assemble, load_model
from edgekv.engine.request import Request, Sampling
from edgekv.errors import ConfigError, StoreError
from edgekv.models.catalog import resolve_model
from edgekv_storage import DataDir, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekv.config import Config
    from edgekv.engine.engine import Engine
    from edgekv.events import Result

SEQUENCE = b"bench-sequence-0"
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Setting:
    """One run of a command."""

    config: Config
    text_path: Path | None = None
    wants_peer: bool = False
    wants_front: bool = False

    @cached_property
    def model_path(self) -> Path:
        """The GGUF file that both programs load."""
        return resolve_model(self.config.model, self.config.data_dir)

    @cached_property
    def text(self) -> Text:
        """The ids to measure with."""
        return load_text(self.model_path, self.text_path)

    @cached_property
    def model(self) -> Model:
        """Our model, loaded once and shared by all engines; a tokenizer only where one engine wants it."""
        with_front = self.wants_front and has_bindings()
        return load_model(self.config, self.model_path, with_front=with_front)

    @property
    def shape(self) -> LeafShape:
        """Leaves of the model."""
        c = self.model.decoder.config
        return LeafShape(c.num_layers, c.num_kv_heads, c.head_dim)

    @property
    def device(self) -> torch.device:
        """Where our model runs."""
        return self.model.decoder.device

    def labels(self, context: int | None, text: str | None = None) -> Labels:
        """What the rows of this run have in common; of selected attention its method and budget too.

        `text`: the name of the one that was used, if it is not the setting's.
        """
        kind, config = self.device.type, self.config
        return Labels(
            context=context,
            attention=config.attention,
            device=kind,
            backend=kernels.describe()[kind],
            text=self.text.name if text is None else text,
            policy=config.selection if self.selects else None,
            budget=config.budget if self.selects else None,
        )

    def machine_notes(self) -> dict[str, object]:
        """What else a reader must know of how the two programs ran."""
        notes: dict[str, object] = {
            "model": self.model_path.name,
            "weights": self.model.weights_mode,
            "threads": torch.get_num_threads(),
            "kernels": kernels.describe()["native"],
        }
        if self.wants_peer:
            notes["peer"] = f"llama.cpp (llama-cpp-python {peer_version()}), flash attention on"
        return notes

    def check_room(self, num_tokens: int) -> None:
        """Raises ConfigError when so many tokens do not fit the model's trained window."""
        window = self.model.front.context_length
        if num_tokens > window:
            raise ConfigError(
                f"{num_tokens} tokens are needed and the model was trained on {window}: use a smaller --context "
                "(decode, prefill and resume also take --attention selected)"
            )

    @property
    def selects(self) -> bool:
        """Whether attention may read a budget only; then contexts may be longer than the trained window."""
        return self.config.attention != "exact"

    def long_text(self, count: int) -> Text:
        """The text to measure speed with; a bundled one that is too short is repeated, and its name says so."""
        return self.text if self.text_path is not None else self.text.at_least(count)

    def check_fits(self, num_tokens: int) -> None:
        """`check_room`, unless attention selects."""
        if not self.selects:
            self.check_room(num_tokens)

    def roomy(self, num_tokens: int) -> Config:
        """The options with a device pool that holds `num_tokens`, unless theirs is larger."""
        needed = (num_columns(num_tokens) + 2) * self.shape.column_bytes
        if self.config.device_budget is not None and self.config.device_budget >= needed:
            return self.config
        return self.config.replace({"device_budget": max(needed, 64 << 20)})

    @contextmanager
    def engine(self, config: Config, store: Path | None = None) -> Iterator[Engine]:
        """An engine with empty memory tiers over the store in a folder, or without a disk tier."""
        with storage_errors(), contextlib.ExitStack() as stack:
            data_dir = None if store is None else stack.enter_context(DataDir.open(store))
            keys = None if data_dir is None else SCRATCH_KEYS.open(data_dir)
            engine = assemble(config, self.model, data_dir=data_dir, keys=keys)
            stack.callback(engine.close)
            yield engine
        gc.collect()  # the arenas go now, not in the middle of the next measurement

    @contextmanager
    def peer(self, num_context: int, *, num_sequences: int = 1) -> Iterator[LlamaCpp | None]:
        """llama.cpp with room for `num_context` tokens (above 0), or None when no peer is wanted."""
        if not self.wants_peer or num_context <= 0:
            yield None
            return
        threads = torch.get_num_threads() if self.model else 1
        use_gpu = self.device.type == "cuda"
        with LlamaCpp(
            self.model_path, num_context, num_threads=threads, use_gpu=use_gpu, num_sequences=num_sequences
        ) as peer:
            yield peer

    def scratch(self) -> AbstractContextManager[Path]:
        """A folder on the data directory's file system, removed afterwards."""
        return scratch(self.config.data_dir)


SCRATCH_KEYS = Unlock(protection="file")  # a measurement leaves nothing in a person's keyring


@contextmanager
def scratch(data_dir: Path) -> Iterator[Path]:
    """A folder on a data directory's file system, removed afterwards. Raises StoreError."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="bench-", dir=data_dir))
    except OSError as error:
        raise StoreError(f"cannot write to {data_dir}: {error.strerror}; choose --data-dir") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def storage_errors() -> Iterator[None]:
    """The store's errors as ours."""
    try:
        yield
    except StorageError as error:
        raise StoreError(str(error)) from error


def generate(
    engine: Engine,
    token_ids: Sequence[int],
    max_tokens: int = 1,
    *,
    durable: bool = False,
    at: float | None = None,
) -> Result:
    """Greedy tokens after `token_ids`, no stop ids; `at` is when it was asked for (time.perf_counter)."""
    request = Request(SEQUENCE, token_ids, durable, GREEDY, max_tokens, submitted_at=at)
    return engine.generate(request, lambda _event: None, lambda: False)
