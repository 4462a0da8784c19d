"""Text to token ids and back, exactly as llama.cpp does it for every GGUF vocabulary.

Knows which tokens end an answer, which begin a text, and that what a person typed is never read as a control
token. Does not know chat templates: it is given their pieces.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

from edgekv.models.llama_vocab import LlamaVocab
from edgekv.models.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgekv.models.config import ModelConfig
    from edgekv.models.gguf import GGUFFile

Piece = tuple[str, bool]
"""A run of text, and whether control tokens in it are meant (template) or mere letters (a person's text)."""

MOST_ROLE_TOKENS = 4


class Tokenizer:
    """The vocabulary of one model. All methods may be called from any thread.

    `bos_id` is the token that begins texts (None: the vocabulary has none), `adds_bos` whether this model
    wants it, `end_ids` every token that ends an answer, `control_ids` those that never show as text.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        """Load the vocabulary of a file whose header was checked; the weights are not touched.

        Raises:
            ModelLoadError: a vocabulary that is damaged or of an unknown kind, or no tokenizer library.
        """
        check_vocabulary(file)
        self._vocab = LlamaVocab(file.path)
        self.num_tokens = self._vocab.num_tokens
        is_sentencepiece = file.metadata["tokenizer.ggml.model"] == "llama"
        self.bos_id = config.bos_id if config.bos_id is not None or not is_sentencepiece else 1
        self.adds_bos = self.bos_id is not None and self._vocab.adds_bos
        self.adds_space_prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", is_sentencepiece))
        ids = range(self.num_tokens)
        self.control_ids = frozenset(
            i for i, yes in zip(ids, self._vocab.is_control(ids), strict=True) if yes
        )
        self.end_ids = self._find_end_ids(config)
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        """Token ids of `text`; control tokens written in it count only where `special`."""
        ids = self._vocab.tokenize(text.encode("utf-8", errors="replace"), parse_special=special)
        return self._with_bos(ids) if add_bos else ids

    def encode_pieces(self, pieces: Sequence[Piece], *, add_bos: bool = False) -> list[int]:
        """Token ids of template pieces and users' texts in one.

        The joined text is tokenized at once, as the model saw it in training, unless that would find control
        tokens which the template's own pieces do not contain: somebody typed one. Then each piece is
        tokenized alone, and no merge crosses from the template into the text.
        """
        whole = self.encode("".join(text for text, _ in pieces), special=True)
        apart = [self.encode(text, special=special) for text, special in pieces]
        meant = [
            i for ids, (_, special) in zip(apart, pieces, strict=True) if special for i in self._control(ids)
        ]
        ids = whole if self._control(whole) == meant else [i for ids in apart for i in ids]
        return self._with_bos(ids) if add_bos else ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`, control tokens left out unless `special`; broken UTF-8 becomes U+FFFD."""
        return b"".join(self.piece(i, special=special) for i in ids).decode("utf-8", errors="replace")

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes of one token: part of a character, perhaps.

        Raises:
            ValueError: no such token, or the tokenizer is closed.
        """
        if not 0 <= token_id < self.num_tokens:
            raise ValueError(f"token {token_id} is not in a vocabulary of {self.num_tokens}")
        if special:
            return self._vocab.piece(token_id, special=True)
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._vocab.piece(token_id, special=False)
        return known

    def sentence_ends(self) -> frozenset[int]:
        """Every token whose text ends a sentence or a line."""
        ends = (b".", b"!", b"?", b"\n", "。".encode())
        return frozenset(i for i in range(self.num_tokens) if self.piece(i).rstrip(b" \"')").endswith(ends))

    def words(self, ids: Sequence[int]) -> set[int]:
        """Those of `ids` that say something: letters or digits, or part of a character. Not a role, which stands
        between a control token and a line's end.
        """
        found: set[int] = set()
        role = -1
        for at, token in enumerate(ids):
            if token in self.control_ids:
                role = at
            text = self.piece(token).decode("utf-8", errors="replace")
            if "\n" in text and 0 <= role >= at - MOST_ROLE_TOKENS - 1:
                found.difference_update(set(ids[role:at]) - set(ids[:role]))
                role = -1
            if any(letter.isalnum() or letter == "\ufffd" for letter in text):
                found.add(token)
        return found

    def close(self) -> None:
        """Free the native memory."""
        self._vocab.close()

    def _control(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self.control_ids]

    def _with_bos(self, ids: list[int]) -> list[int]:
        """`ids` with BOS in front where the model wants it and the template has not written it."""
        if not self.adds_bos or self.bos_id is None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    def _find_end_ids(self, config: ModelConfig) -> frozenset[int]:
        """Control tokens that end an answer, and the file's EOS and EOT.

        llama.cpp takes token 11 for EOS in BPE files that name none; being no control token it is left out.
        """
        ids = range(self.num_tokens)
        ends = [i for i, is_end in zip(ids, self._vocab.is_end(ids), strict=True) if is_end]
        return frozenset(self._control(ends)) | {i for i in (config.eos_id, config.eot_id) if i is not None}


class Spelling(Protocol):
    """What a Detokenizer needs of a vocabulary."""

    @property
    def adds_space_prefix(self) -> bool:
        """Whether the first word comes with a space that is not the text's."""
        ...

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes of one token."""
        ...


class Detokenizer:
    """Turns ids into text as they come, giving out whole characters only. One per answer, one thread."""

    def __init__(self, tokenizer: Spelling) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = tokenizer.adds_space_prefix  # SentencePiece puts one before the first word

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes; empty for a control token or half a character."""
        return self._strip(self._decoder.decode(self._tokenizer.piece(token_id)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
