"""llama.cpp as the peer, through the bindings that edgekv uses for its tokenizer, at its best settings.

Flash attention on, the same number of threads, batches of 512. One sequence, one context; knows token ids
and logits only. Its library is loaded when a peer is made, not before.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edgekv.errors import ConfigError, ModelLoadError
from edgekv.models.llama_vocab import load_bindings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

PEER = "llama.cpp"
BATCH = 512
_log_callbacks: list[object] = []  # native code keeps the pointer


def check_peer(name: str | None) -> bool:
    """Whether a peer was asked for. Raises ConfigError for one that is not known."""
    if name in (None, "none"):
        return False
    if name != PEER:
        raise ConfigError(f"--peer {name} is not known; the peer is {PEER}")
    return True


def peer_version() -> str | None:
    """The version of the package that brings it, None when it is not installed."""
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return None


class LlamaCpp:
    """A model and one context of `num_context` tokens. Close it, or use it in a `with`."""

    def __init__(
        self,
        path: Path,
        num_context: int,
        *,
        num_threads: int,
        use_gpu: bool = False,
        num_sequences: int = 1,
    ) -> None:
        """Two sequences are what `repeat` needs. ModelLoadError when the library or the file cannot be loaded."""
        self.num_context = num_context
        self._lib = load_bindings()
        self._context: Any = None
        self._batch: Any = None
        self._silence()
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 999 if use_gpu else 0
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ModelLoadError(f"{PEER} cannot load {path}; leave --peer out")
        self._context = self._lib.llama_init_from_model(
            self._model, self._settings(num_threads, num_sequences)
        )
        if not self._context:
            self.close()
            raise ModelLoadError(
                f"{PEER} cannot make a context of {num_context} tokens; use a smaller --context"
            )
        self._memory = self._lib.llama_get_memory(self._context)
        self._num_vocab = int(self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model)))
        self._batch = self._lib.llama_batch_init(BATCH, 0, 1)
        self.num_tokens = 0

    def _settings(self, num_threads: int, num_sequences: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = -(-self.num_context // 256) * 256
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = num_sequences
        params.kv_unified = True  # one cache, not one of half the size for each sequence
        params.n_threads = params.n_threads_batch = num_threads
        params.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        return params

    def _silence(self) -> None:
        if not _log_callbacks:

            @self._lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]  # untyped bindings
            def ignore(_level: int, _text: bytes, _user_data: object) -> None:
                return

            _log_callbacks.append(ignore)
        self._lib.llama_log_set(_log_callbacks[0], self._lib.ctypes.c_void_p(0))

    def feed(self, token_ids: Sequence[int]) -> None:
        """Append tokens; the logits of the last one are then in `last_logits`."""
        for start in range(0, len(token_ids), BATCH):
            self._decode(token_ids[start : start + BATCH], all_logits=False)

    def block_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Append at most 512 tokens; `[T, vocab]`, the logits of all of them (copied)."""
        self._decode(token_ids, all_logits=True)
        return self._logits(len(token_ids)).copy()

    def last_logits(self) -> NDArray[np.float32]:
        """`[vocab]`; a view that the next call overwrites."""
        last: NDArray[np.float32] = self._logits(1)[0]
        return last

    def greedy(self) -> int:
        """The likeliest next token."""
        return int(self.last_logits().argmax())

    def shorten(self, num_tokens: int) -> None:
        """Forget tokens from `num_tokens` on."""
        if num_tokens == 0:
            self._lib.llama_memory_clear(self._memory, False)  # a C function
        else:
            self._lib.llama_memory_seq_rm(self._memory, 0, num_tokens, -1)
        self.num_tokens = num_tokens

    def save(self, path: Path, token_ids: Sequence[int]) -> int:
        """Write the state of the sequence, which holds `token_ids`; bytes written."""
        ids = (self._lib.llama_token * len(token_ids))(*token_ids)
        written = int(
            self._lib.llama_state_seq_save_file(self._context, os.fsencode(path), 0, ids, len(token_ids))
        )
        if not written:
            raise ModelLoadError(f"{PEER} could not save its state to {path}; is the disk full?")
        return written

    def restore(self, path: Path, capacity: int) -> None:
        """Replace the sequence by a saved one of at most `capacity` tokens."""
        self.shorten(0)
        ids = (self._lib.llama_token * capacity)()
        count = self._lib.ctypes.c_size_t(0)
        read = self._lib.llama_state_seq_load_file(
            self._context, os.fsencode(path), 0, ids, capacity, self._lib.ctypes.byref(count)
        )
        if not read:
            raise ModelLoadError(f"{PEER} could not restore its state from {path}")
        self.num_tokens = int(count.value)

    def state(self) -> Any:
        """The sequence's tokens as bytes, for `repeat`."""
        size = self._lib.llama_state_seq_get_size(self._context, 0)
        data = (self._lib.ctypes.c_uint8 * size)()
        if not self._lib.llama_state_seq_get_data(self._context, data, size, 0):
            raise ModelLoadError(f"{PEER} could not hand out its state")
        return data

    def repeat(self, state: Any, num_tokens: int) -> None:
        """Put the first `num_tokens` of a `state` behind the sequence, moved to the positions that follow.

        As many cells are in use, and visible to the next token, as if they had been computed; only what they hold
        is another text's. Needs two sequences.
        """
        lib, memory = self._lib, self._memory
        if not lib.llama_state_seq_set_data(self._context, state, len(state), 1):
            raise ModelLoadError(f"{PEER} has no room for {num_tokens} more tokens; use a smaller --context")
        lib.llama_memory_seq_rm(memory, 1, num_tokens, -1)
        lib.llama_memory_seq_add(memory, 1, 0, -1, self.num_tokens)
        lib.llama_memory_seq_cp(memory, 1, 0, -1, -1)
        lib.llama_memory_seq_rm(memory, 1, -1, -1)
        self.num_tokens += num_tokens

    def _decode(self, token_ids: Sequence[int], *, all_logits: bool) -> None:
        batch, count = self._batch, len(token_ids)
        assert 0 < count <= BATCH
        for index, token in enumerate(token_ids):
            batch.token[index] = token
            batch.pos[index] = self.num_tokens + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = all_logits or index == count - 1
        batch.n_tokens = count
        code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise ConfigError(
                f"{PEER} could not take {count} more tokens (code {code}); use a smaller --context"
            )
        self.num_tokens += count

    def _logits(self, count: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(count, self._num_vocab))

    def close(self) -> None:
        """Free everything; harmless when called again."""
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        if self._batch is not None:
            self._lib.llama_batch_free(self._batch)
            self._batch = None
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
