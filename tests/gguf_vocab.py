"""Two small vocabularies for tiny models: byte-level BPE (as GPT-2, Qwen) and SentencePiece (as Llama 2).

Both can write any text: the first has a token for every byte, the second byte fallback.
"""

import gguf

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = (
    "t h", "th e", "Ġ the", "i n", "e r", "Ġ a", "a n", "o u", "Ġ w", "h e", "r e", "o n", "Ġ s", "i s",
    "e n", "l l", "Ġ t", "in g", "an d", "Ġ and", "e l", "he l", "hel l", "hell o", "s y", "u s", "us er",
    "as s", "a s", "s t", "e m", "o r", "w or", "Ġ h", "l d", "l o", "Ġ o", "i t", "e s", "e d",
)  # fmt: skip
_PIECES = ("▁the", "▁a", "▁and", "▁hello", "▁world", "the", "ing", "▁is", "er", "in", "on", "▁", "\n")


def add_vocabulary(writer: gguf.GGUFWriter, kind: str, size: int, add_bos: bool) -> None:
    """Add a vocabulary of exactly `size` tokens; what the pieces do not fill is marked unused."""
    tokens, types, scores = _bpe() if kind == "bpe" else _spm()
    assert size >= len(tokens), f"a {kind} vocabulary needs {len(tokens)} tokens"
    unused = range(size - len(tokens))
    tokens += [f"<|unused_{index}|>" for index in unused]
    types += [_UNUSED for _ in unused]
    scores += [-1000.0 for _ in unused]
    writer.add_tokenizer_model("gpt2" if kind == "bpe" else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if kind == "bpe":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([merge for merge in _MERGES if "".join(merge.split(" ")) in set(tokens)])
        writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    else:
        writer.add_token_scores(scores)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(add_bos)
    writer.add_add_space_prefix(kind == "spm")


def _bpe() -> tuple[list[str], list[int], list[float]]:
    letters = list(_byte_letters())
    known = set(letters)
    merged: list[str] = []
    for merge in _MERGES:
        left, right = merge.split(" ")
        if left in known and right in known and left + right not in known:
            known.add(left + right)
            merged.append(left + right)
    tokens = [*_SPECIALS, *letters, *merged]
    types = [_CONTROL] * len(_SPECIALS) + [_NORMAL] * (len(tokens) - len(_SPECIALS))
    return tokens, types, [0.0] * len(tokens)


def _spm() -> tuple[list[str], list[int], list[float]]:
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*_PIECES[:-1], *letters]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_SPECIALS, *pieces]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_CONTROL] * 3, *[_NORMAL] * len(pieces)]
    scores = [0.0] * 262 + [-float(rank) for rank in range(len(pieces))]
    return tokens, types, scores


def _byte_letters() -> str:
    """GPT-2's letter for each byte: printable ones stand for themselves, the rest for U+0100 and on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))
