"""What a model is, read from its GGUF metadata, and which tensors it must therefore have.

Knows llama.cpp's keys for the architectures edgekv runs and the marks of those it must not: a file with a
feature the decoder does not compute is refused by name, since running it anyway would answer plausibly and
wrongly. Knows neither torch nor how weights are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekv.models.gguf import DEQUANTIZABLE, GGMLType
from edgekv.models.metadata import Metadata

if TYPE_CHECKING:
    from edgekv.models.gguf import GGUFFile

RopeStyle = Literal["interleaved", "split"]
ScalingType = Literal["none", "linear", "yarn"]

SUPPORTED: dict[str, RopeStyle] = {"llama": "interleaved", "qwen2": "split", "qwen3": "split"}
"""Architectures of the decoder: "interleaved" rotates channels (0, 1), (2, 3)..., "split" (i, i + dim/2)."""

_ELSEWHERE = f"edgekv runs {', '.join(SUPPORTED)} models"
# Keys (after the architecture's name) that change what is computed unless they are zero.
_REFUSED_FEATURES = {
    "expert_count": "a mixture of experts",
    "attn_logit_softcapping": "attention logit softcapping",
    "final_logit_softcapping": "final logit softcapping",
    "logit_scale": "a logit scale",
    "embedding_scale": "an embedding scale",
    "residual_scale": "a residual scale",
    "attention.scale": "an attention scale of its own",
    "attention.clamp_kqv": "clamped queries, keys and values",
    "attention.max_alibi_bias": "ALiBi positions",
    "attention.temperature_scale": "a temperature that grows with the position",
    "rope.scaling.yarn_log_multiplier": "a yarn multiplier of its own",
    "attention.kv_lora_rank": "latent attention",
    "ssm.conv_kernel": "recurrent (state space) layers",
    "ssm.state_size": "recurrent (state space) layers",
    "wkv.head_size": "recurrent (RWKV) layers",
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How positions are stretched, with llama.cpp's meaning of each number.

    `factor` divides the frequencies ("linear") or the slow ones ("yarn"); `original_context` (tokens) is what
    the model was trained on before. For "yarn" llama.cpp multiplies cos and sin by
    `attn_factor * (1 + 0.1 * ln(factor))`, the ramp lies between `beta_fast` and `beta_slow` rotations, and
    `ext_factor` (1 unless the file says otherwise) weighs it.
    """

    type: ScalingType = "none"
    factor: float = 1.0
    original_context: int = 0
    attn_factor: float = 1.0
    ext_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of one model. Sizes are in elements, `context_length` in tokens; absent ids are None."""

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rope_dim: int
    rope_style: RopeStyle
    rope_scaling: RopeScaling
    has_rope_factors: bool  # rope_freqs.weight is there: llama3 scaling as one divisor per frequency
    rms_eps: float
    tied_head: bool
    qkv_bias: bool
    qk_norm: bool
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    pad_id: int | None
    name: str
    file_type: int | None

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> ModelConfig:
        """Read and check the whole description, tensor names, shapes and types included.

        Raises:
            ModelLoadError: an unsupported architecture or feature, or metadata and tensors that disagree.
        """
        architecture = _supported_architecture(file)
        meta = Metadata(file.path, file.metadata, f"{architecture}.")
        _refuse_features(meta)
        context_length = meta.integer("context_length", 1, 1 << 31)
        _refuse_sliding_window(meta, context_length)
        num_layers = meta.integer("block_count", 1, 1024)
        hidden_size = meta.integer("embedding_length", 1, 1 << 20)
        num_heads = meta.uniform_integer("attention.head_count", 1, 4096)
        num_kv_heads = meta.uniform_integer("attention.head_count_kv", 1, 4096, default=num_heads)
        if num_heads % num_kv_heads:
            raise meta.error(f"{num_heads} heads cannot share {num_kv_heads} key-value heads")
        head_dim = _head_dim(meta, hidden_size, num_heads)
        config = cls(
            architecture=architecture,
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            ffn_size=meta.uniform_integer("feed_forward_length", 1, 1 << 24),
            vocab_size=meta.length("tokenizer.ggml.tokens"),
            context_length=context_length,
            rope_theta=meta.number("rope.freq_base", 10000.0, above=0.0),
            rope_dim=_rope_dim(meta, head_dim),
            rope_style=SUPPORTED[architecture],
            rope_scaling=_rope_scaling(meta, context_length),
            has_rope_factors="rope_freqs.weight" in file.tensors,
            rms_eps=meta.number("attention.layer_norm_rms_epsilon", None, above=0.0),
            tied_head="output.weight" not in file.tensors,
            qkv_bias="blk.0.attn_q.bias" in file.tensors,
            qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
            bos_id=meta.token_id("bos"),
            eos_id=meta.token_id("eos"),
            eot_id=meta.token_id("eot"),
            pad_id=meta.token_id("padding"),
            name=meta.text("general.name") or file.path.stem,
            file_type=meta.optional_integer("general.file_type"),
        )
        _check_tensors(file, config)
        return config


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and ggml shape (ne0, the input size, first) of every tensor such a model has, and no others."""
    hidden, ffn, vocab = config.hidden_size, config.ffn_size, config.vocab_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (hidden, queries),
        "attn_k.weight": (hidden, keys),
        "attn_v.weight": (hidden, keys),
        "attn_output.weight": (queries, hidden),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (hidden, ffn),
        "ffn_up.weight": (hidden, ffn),
        "ffn_down.weight": (ffn, hidden),
    }
    if config.qkv_bias:
        layer |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if config.qk_norm:
        layer |= {"attn_q_norm.weight": (config.head_dim,), "attn_k_norm.weight": (config.head_dim,)}
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (hidden, vocab)}
    if config.has_rope_factors:
        tensors["rope_freqs.weight"] = (config.rope_dim // 2,)
    for index in range(config.num_layers):
        tensors |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    tensors["output_norm.weight"] = (hidden,)
    if not config.tied_head:
        tensors["output.weight"] = (hidden, vocab)
    return tensors


def _supported_architecture(file: GGUFFile) -> str:
    meta = Metadata(file.path, file.metadata, "")
    kind = meta.text("general.type") or "model"
    if kind != "model":
        raise meta.error(f"it holds a {kind!r}, not a language model", "give the model's own file")
    if (meta.optional_integer("split.count") or 0) > 1:
        raise meta.error("it is one part of a split model", "join the parts with llama-gguf-split --merge")
    architecture = meta.text("general.architecture")
    if architecture is None:
        raise meta.error("it does not name its architecture (general.architecture)")
    if architecture not in SUPPORTED:
        raise meta.error(f"architecture {architecture!r} is not supported", _ELSEWHERE)
    return architecture


def _refuse_features(meta: Metadata) -> None:
    for key, feature in _REFUSED_FEATURES.items():
        if meta.number(key, 0.0):
            raise meta.error(f"the model uses {feature} ({meta.prefix}{key})", _ELSEWHERE + " without it")
    if meta.values.get(meta.prefix + "attention.causal") is False:
        raise meta.error(
            "the model looks ahead (attention.causal is false)", _ELSEWHERE + " that generate text"
        )


def _refuse_sliding_window(meta: Metadata, context_length: int) -> None:
    window = meta.number("attention.sliding_window", 0.0)
    if 0 < window < context_length:
        raise meta.error(
            f"the model attends through a sliding window of {window:.0f} tokens",
            _ELSEWHERE + " with full attention",
        )


def _head_dim(meta: Metadata, hidden_size: int, num_heads: int) -> int:
    head_dim = meta.integer("attention.key_length", 2, 1 << 12, default=hidden_size // num_heads)
    value_length = meta.integer("attention.value_length", 2, 1 << 12, default=hidden_size // num_heads)
    if value_length != head_dim:
        raise meta.error(f"keys ({head_dim}) and values ({value_length}) differ in length", _ELSEWHERE)
    return head_dim


def _rope_dim(meta: Metadata, head_dim: int) -> int:
    rope_dim = meta.integer("rope.dimension_count", 2, 1 << 12, default=head_dim)
    if rope_dim != head_dim or rope_dim % 2:
        raise meta.error(
            f"only {rope_dim} of {head_dim} channels of a head are rotated",
            _ELSEWHERE + " that rotate all, an even number",
        )
    return rope_dim


def _rope_scaling(meta: Metadata, context_length: int) -> RopeScaling:
    kind = meta.text(f"{meta.prefix}rope.scaling.type")
    factor = meta.number("rope.scaling.factor", 0.0) or meta.number("rope.scale_linear", 0.0) or 1.0
    if kind is None:
        kind = "linear" if factor != 1.0 else "none"  # llama.cpp's reading of files that give only a factor
    if kind == "none":
        return RopeScaling()
    if factor <= 0:
        raise meta.error(f"the rope scaling factor is {factor}")
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise meta.error(f"rope scaling {kind!r} is not supported", "edgekv knows linear, yarn and llama3")
    return RopeScaling(
        "yarn",
        factor,
        meta.integer("rope.scaling.original_context_length", 1, 1 << 31, default=context_length),
        meta.number("rope.scaling.attn_factor", 1.0),
        meta.number("rope.scaling.yarn_ext_factor", 1.0),
        meta.number("rope.scaling.yarn_beta_fast", 32.0),
        meta.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def _check_tensors(file: GGUFFile, config: ModelConfig) -> None:
    meta = Metadata(file.path, file.metadata, "")
    if config.num_layers * 9 > len(file.tensors):  # before building a table from a number the file made up
        raise meta.error(f"it has {len(file.tensors)} tensors, too few for {config.num_layers} layers")
    expected = expected_tensors(config)
    for name, shape in expected.items():
        info = file.tensors.get(name)
        if info is None:
            raise meta.error(f"tensor {name!r} is missing")
        if info.shape != shape:
            raise meta.error(f"tensor {name!r} has the shape {list(info.shape)}, not {list(shape)}")
        plain = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
        if info.ggml_type not in (DEQUANTIZABLE if len(shape) > 1 else plain):
            raise meta.error(
                f"tensor {name!r} has the type {info.ggml_type.name}, which cannot be used there"
            )
    for name in file.tensors:
        if name not in expected:
            raise meta.error(f"tensor {name!r} has no place in a {config.architecture} model", _ELSEWHERE)
