"""llama.cpp's tokenizer, reached through the ctypes bindings of llama-cpp-python and nothing else of it.

Knows the bindings and native memory. Executing llama_cpp/__init__.py would import `diskcache`, whose unfixed
pickle hole edgekv promises to keep out of the process, so only the submodule with the bindings is loaded,
under a bare package that is gone afterwards: a later `import llama_cpp` by somebody else works as always.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from edgekv.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_T = TypeVar("_T")
_loading = threading.Lock()
_log_lines: list[str] = []
_callbacks: list[object] = []  # what native code may still call must not be collected


def load_bindings() -> Any:
    """The module llama_cpp.llama_cpp; imports neither its package nor anything with a network or a pickle.

    Raises:
        ModelLoadError: the library is not installed or was built for another machine.
    """
    with _loading:
        try:
            if "llama_cpp" in sys.modules:
                return importlib.import_module("llama_cpp.llama_cpp")
            return _import_without_package()
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise ModelLoadError(
                f"the tokenizer library cannot be loaded ({_first_line(error)}); install a C/C++ compiler, "
                "then `pip install --force-reinstall --no-cache-dir llama-cpp-python`"
            ) from error


def _import_without_package() -> Any:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("llama-cpp-python is not installed")
    bare = ModuleType("llama_cpp")
    bare.__spec__ = spec
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = bare
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        if sys.modules.get("llama_cpp") is bare:
            del sys.modules["llama_cpp"]


class LlamaVocab:
    """A vocabulary in native memory. Every method may be called from any thread; `close` waits its turn."""

    def __init__(self, path: Path) -> None:
        self._lib = load_bindings()
        self._lock = threading.Lock()
        self._model: Any = None
        with _loading:
            _be_quiet(self._lib)
            _log_lines.clear()
            params = self._lib.llama_model_default_params()
            params.vocab_only = True
            params.n_gpu_layers = 0
            self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
            if not self._model:
                reason = next((line for line in _log_lines if "error" in line), "no reason given")
                raise ModelLoadError(
                    f"{path}: its vocabulary cannot be used ({reason}); try a newer llama-cpp-python"
                )
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.num_tokens: int = self._lib.llama_vocab_n_tokens(self._vocab)

    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 text, without BOS or EOS; control tokens only where `parse_special`."""
        capacity = len(text) + 16
        tokens = (self._lib.llama_token * capacity)()
        count = self._call(
            lambda vocab: self._lib.llama_tokenize(
                vocab, text, len(text), tokens, capacity, False, parse_special
            )
        )
        assert 0 <= count <= capacity, "a token cannot be shorter than a byte"
        return list(tokens[:count])

    def piece(self, token_id: int, *, special: bool) -> bytes:
        """The bytes a token stands for; nothing for a control token unless `special`."""
        buffer = bytearray(64)
        while True:
            native = (self._lib.ctypes.c_char * len(buffer)).from_buffer(buffer)
            size = len(buffer)
            count = self._call(
                lambda vocab: self._lib.llama_token_to_piece(vocab, token_id, native, size, 0, special)  # noqa: B023
            )
            if count >= 0:
                return bytes(buffer[:count])
            buffer = bytearray(-count)

    def is_end(self, token_ids: Sequence[int]) -> list[bool]:
        """For each id, whether generation ends there."""
        return self._call(lambda vocab: [bool(self._lib.llama_vocab_is_eog(vocab, i)) for i in token_ids])

    def is_control(self, token_ids: Sequence[int]) -> list[bool]:
        """For each id, whether it is a control token."""
        return self._call(lambda vocab: [bool(self._lib.llama_vocab_is_control(vocab, i)) for i in token_ids])

    @property
    def adds_bos(self) -> bool:
        """Whether texts begin with the BOS token."""
        return self._call(lambda vocab: bool(self._lib.llama_vocab_get_add_bos(vocab)))

    def close(self) -> None:
        """Free the native memory; using the vocabulary afterwards is a ValueError."""
        with self._lock:
            model, self._model = self._model, None
            if model:
                self._lib.llama_model_free(model)

    def _call(self, function: Callable[[Any], _T]) -> _T:
        with self._lock:
            if not self._model:
                raise ValueError("the tokenizer is closed")
            return function(self._vocab)


def _be_quiet(lib: Any) -> None:
    """Keep llama.cpp's log off the terminal; its lines serve to explain a failed load."""
    if not _callbacks:

        @lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]  # the bindings carry no types
        def keep(_level: int, text: bytes, _user_data: object) -> None:
            if len(_log_lines) < 1000:
                _log_lines.append(text.decode("utf-8", errors="replace").strip())

        _callbacks.append(keep)
    lib.llama_log_set(_callbacks[0], lib.ctypes.c_void_p(0))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
