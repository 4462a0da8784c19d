"""Writes tiny random GGUF models, valid for edgekv and for llama.cpp, with a vocabulary that tokenizes.

write_tiny_gguf(tmp_path / "tiny.gguf", "qwen3", "Q4_K", tied=True, seed=1)
"""

from pathlib import Path

import gguf
import numpy as np
from gguf_blocks import QUANTS, block_size, quantized
from gguf_vocab import CHATML, add_vocabulary

__all__ = ["ARCHITECTURES", "CHATML", "QUANTS", "write_tiny_gguf"]

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def write_tiny_gguf(
    path: Path,
    architecture: str = "llama",
    quant: str = "F32",
    *,
    num_layers: int = 2,
    hidden: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int | None = None,
    vocab: int = 384,
    context: int = 512,
    tied: bool = True,
    bias: bool | None = None,
    qk_norm: bool | None = None,
    rope_freqs: bool = False,
    rope_theta: float = 10000.0,
    rope_scaling: tuple[str, float, int] | None = None,
    tokenizer: str = "bpe",
    chat_template: str | None = CHATML,
    add_bos: bool = False,
    embedding_quant: str | None = None,
    alignment: int | None = None,
    metadata: dict[str, object] | None = None,
    seed: int = 0,
) -> Path:
    """Write a model of a few hundred kilobytes; returns `path`.

    `quant` is the type of every matrix (`embedding_quant`, if given, that of the embedding and the head);
    norms and biases are F32. Defaults follow the architecture: qwen2 has biases, qwen3 norms on queries and
    keys. `rope_scaling` is (type, factor, original context). `metadata` sets further keys (int, float, bool,
    str), after the others. `vocab` is at least 320.
    """
    unit = block_size(quant)
    hidden = hidden or max(64, unit)
    head_dim = head_dim or hidden // heads
    ffn = ffn or 2 * hidden
    bias = architecture == "qwen2" if bias is None else bias
    qk_norm = architecture == "qwen3" if qk_norm is None else qk_norm
    writer = gguf.GGUFWriter(path, architecture)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name(f"tiny {architecture} {quant}")
    writer.add_block_count(num_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    if rope_scaling is not None:
        kind, factor, original = rope_scaling
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(original)
    add_vocabulary(writer, tokenizer, vocab, add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    _add_metadata(writer, metadata or {})
    weights = _Weights(writer, np.random.default_rng(seed))
    weights.matrix("token_embd", vocab, hidden, embedding_quant or quant)
    if rope_freqs:
        weights.vector("rope_freqs", np.linspace(1.0, 8.0, head_dim // 2))
    for index in range(num_layers):
        block = f"blk.{index}."
        weights.norm(block + "attn_norm", hidden)
        for name, rows in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            weights.matrix(f"{block}attn_{name}", rows, hidden, quant)
            if bias:
                weights.bias(f"{block}attn_{name}", rows)
        if qk_norm:
            weights.norm(block + "attn_q_norm", head_dim)
            weights.norm(block + "attn_k_norm", head_dim)
        weights.matrix(block + "attn_output", hidden, heads * head_dim, quant)
        weights.norm(block + "ffn_norm", hidden)
        weights.matrix(block + "ffn_gate", ffn, hidden, quant)
        weights.matrix(block + "ffn_up", ffn, hidden, quant)
        weights.matrix(block + "ffn_down", hidden, ffn, quant)
    weights.norm("output_norm", hidden)
    if not tied:
        weights.matrix("output", vocab, hidden, embedding_quant or quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Weights:
    """Adds random tensors of the right size and scale to a writer."""

    def __init__(self, writer: gguf.GGUFWriter, rng: np.random.Generator) -> None:
        self._writer = writer
        self._rng = rng

    def matrix(self, name: str, rows: int, columns: int, quant: str) -> None:
        kind = gguf.GGMLQuantizationType[quant]
        self._writer.add_tensor(f"{name}.weight", quantized(self._rng, rows, columns, quant), raw_dtype=kind)

    def vector(self, name: str, values: np.ndarray, kind: str = "weight") -> None:
        self._writer.add_tensor(f"{name}.{kind}", values.astype(np.float32))

    def norm(self, name: str, size: int) -> None:
        self.vector(name, self._rng.normal(1.0, 0.1, size))

    def bias(self, name: str, size: int) -> None:
        self.vector(name, self._rng.normal(0.0, 0.1, size), "bias")


def _add_metadata(writer: gguf.GGUFWriter, values: dict[str, object]) -> None:
    for key, value in values.items():
        writer.kv_data[0].pop(key, None)
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
