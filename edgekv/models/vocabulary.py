"""Is a file's vocabulary one that native code can be trusted with?

llama.cpp ends the whole process on some inconsistent vocabularies (a token listed twice, a byte it cannot
write). Those are found here first and become one clear error. Knows the tokenizer.ggml.* keys; not how text
becomes tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekv.models.gguf import StringArray
from edgekv.models.metadata import Metadata

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekv.models.gguf import GGUFFile

KINDS = {"gpt2": "byte-level BPE", "llama": "SentencePiece"}
_MAX_TOKEN_BYTES = 1 << 16
_TOKENS = "tokenizer.ggml.tokens"


def check_vocabulary(file: GGUFFile) -> None:
    """Refuse a vocabulary that is incomplete, contradicts itself or is of a kind edgekv does not use.

    Raises:
        ModelLoadError: naming the first thing found wrong.
    """
    meta = Metadata(file.path, file.metadata, "")
    kind = meta.text("tokenizer.ggml.model")
    if kind not in KINDS:
        names = ", ".join(f"{key} ({what})" for key, what in KINDS.items())
        raise meta.error(f"tokenizer {kind!r} is not supported", f"edgekv knows {names}")
    num_tokens = meta.length(_TOKENS)
    _check_array(meta, "tokenizer.ggml.scores", num_tokens, "if", is_needed=kind == "llama")
    _check_array(meta, "tokenizer.ggml.token_type", num_tokens, "iu", is_needed=False)
    if kind == "gpt2" and not isinstance(file.metadata.get("tokenizer.ggml.merges"), StringArray):
        raise meta.error("tokenizer.ggml.merges is missing, and its tokenizer needs them")
    for key, value in file.metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and not _is_id(value, num_tokens):
            raise meta.error(f"{key} is {value}, and the vocabulary has {num_tokens} tokens")
    tokens = file.metadata[_TOKENS]
    assert isinstance(tokens, StringArray)
    _check_tokens(meta, tokens, needs_bytes=kind == "llama")


def _is_id(value: object, num_tokens: int) -> bool:
    """Whether `value` is a token, or -1 (as some writers say "none"), signed or not."""
    return type(value) is int and (0 <= value < num_tokens or value in (-1, 0xFFFFFFFF))


def _check_array(meta: Metadata, key: str, length: int, kinds: str, *, is_needed: bool) -> None:
    value = meta.values.get(key)
    if value is None and not is_needed:
        return
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or value.dtype.itemsize != 4:
        raise meta.error(f"{key} is not an array of 4-byte numbers")
    if len(value) != length:
        raise meta.error(f"{key} has {len(value)} entries for {length} tokens")


def _check_tokens(meta: Metadata, tokens: StringArray, *, needs_bytes: bool) -> None:
    seen: set[bytes] = set()
    for index, token in enumerate(tokens.raw_all()):
        if len(token) > _MAX_TOKEN_BYTES:
            raise meta.error(f"token {index} is {len(token)} bytes long")
        text = token.partition(b"\0")[0]  # where llama.cpp sees a token end
        seen.add(text or b"[EMPTY_%d]" % index)
    if len(seen) != len(tokens):
        raise meta.error(f"its vocabulary has tokens that appear twice ({len(tokens) - len(seen)} of them)")
    if needs_bytes and (missing := list(_missing_bytes(seen))):
        raise meta.error(f"its vocabulary cannot write {len(missing)} of the 256 bytes (no {missing[0]})")


def _missing_bytes(tokens: set[bytes]) -> Iterable[str]:
    return (
        f"<0x{byte:02X}>"
        for byte in range(256)
        if b"<0x%02X>" % byte not in tokens and bytes([byte]) not in tokens
    )
