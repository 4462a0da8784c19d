"""What a model is, and the models that must not run because the decoder would compute something else."""

import gguf
import numpy as np
import pytest
from gguf_writer import ARCHITECTURES, write_tiny_gguf

from edgekv.errors import ModelLoadError
from edgekv.models.catalog import bundled_model
from edgekv.models.config import ModelConfig, RopeScaling, expected_tensors
from edgekv.models.gguf import open_gguf


def config_of(tmp_path, architecture="llama", **options) -> ModelConfig:
    return ModelConfig.from_gguf(open_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", architecture, **options)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_architecture_has_exactly_its_tensors(tmp_path, architecture, tied):
    """A tensor the decoder does not know is a computation it would leave out."""
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf", architecture, tied=tied, rope_freqs=architecture == "llama"
    )
    file = open_gguf(path)
    config = ModelConfig.from_gguf(file)
    assert expected_tensors(config) == {name: info.shape for name, info in file.tensors.items()}
    assert config.architecture == architecture
    assert config.tied_head is tied
    assert config.qkv_bias is (architecture == "qwen2")
    assert config.qk_norm is (architecture == "qwen3")
    assert config.rope_style == ("interleaved" if architecture == "llama" else "split")
    assert config.has_rope_factors is (architecture == "llama")


def test_numbers_are_those_written(tmp_path):
    config = config_of(
        tmp_path,
        hidden=128,
        heads=8,
        kv_heads=2,
        head_dim=32,
        ffn=96,
        num_layers=3,
        context=77,
        rope_theta=5e5,
    )
    assert (config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim) == (128, 8, 2, 32)
    assert (config.ffn_size, config.num_layers, config.context_length, config.vocab_size) == (96, 3, 77, 384)
    assert (config.rope_theta, config.rope_dim, config.rms_eps) == (5e5, 32, pytest.approx(1e-5))
    assert (config.bos_id, config.eos_id, config.eot_id, config.pad_id) == (0, 2, None, None)
    assert config.name == "tiny llama F32"


def test_defaults_are_llama_cpps(tmp_path):
    """Old files leave out what follows from the rest."""
    writer = write_tiny_gguf(tmp_path / "tiny.gguf", kv_heads=4)
    without = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.freq_base")
    copy = rewrite(writer, tmp_path / "old.gguf", drop=[f"llama.{key}" for key in without])
    config = ModelConfig.from_gguf(open_gguf(copy))
    assert (config.num_kv_heads, config.head_dim, config.rope_theta) == (4, 16, 10000.0)


def test_rope_scaling(tmp_path):
    """linear divides all frequencies, yarn some of them: to confuse them ruins every long context."""
    assert config_of(tmp_path).rope_scaling == RopeScaling()
    linear = config_of(tmp_path, rope_scaling=("linear", 4.0, 128)).rope_scaling
    assert (linear.type, linear.factor) == ("linear", 4.0)
    only_factor = config_of(tmp_path, metadata={"llama.rope.scaling.factor": 2.0}).rope_scaling
    assert (only_factor.type, only_factor.factor) == ("linear", 2.0)
    legacy = config_of(tmp_path, metadata={"llama.rope.scale_linear": 8.0}).rope_scaling
    assert (legacy.type, legacy.factor) == ("linear", 8.0)
    yarn = config_of(
        tmp_path,
        rope_scaling=("yarn", 4.0, 128),
        metadata={"llama.rope.scaling.attn_factor": 0.5, "llama.rope.scaling.yarn_beta_fast": 16.0},
    ).rope_scaling
    assert yarn == RopeScaling("yarn", 4.0, 128, 0.5, 1.0, 16.0, 1.0)


REFUSED = {
    "llama.expert_count": (8, "mixture of experts"),
    "llama.attention.sliding_window": (128, "sliding window of 128 tokens"),
    "llama.attn_logit_softcapping": (50.0, "attention logit softcapping"),
    "llama.final_logit_softcapping": (30.0, "final logit softcapping"),
    "llama.logit_scale": (0.5, "logit scale"),
    "llama.embedding_scale": (12.0, "embedding scale"),
    "llama.residual_scale": (0.2, "residual scale"),
    "llama.attention.scale": (0.1, "attention scale"),
    "llama.attention.causal": (False, "looks ahead"),
    "llama.attention.value_length": (32, "differ in length"),
    "llama.rope.dimension_count": (8, "only 8 of 16 channels"),
    "llama.rope.scaling.type": ("longrope", "rope scaling 'longrope'"),
    "llama.ssm.state_size": (16, "recurrent"),
    "llama.attention.head_count_kv": ([2, 1], "differs between layers"),
    "llama.attention.layer_norm_rms_epsilon": (0.0, "not a sensible number"),
    "llama.rope.freq_base": (float("nan"), "not a sensible number"),
    "llama.block_count": (0, "not a number from 1"),
    "llama.embedding_length": ("64", "embedding_length is str"),
    "llama.feed_forward_length": (64, "'blk.0.ffn_gate.weight' has the shape"),
    "split.count": (3, "llama-gguf-split --merge"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_decoder_does_not_compute_is_refused_by_name(tmp_path, key):
    """Such a model would answer, plausibly and wrongly."""
    value, said = REFUSED[key]
    with pytest.raises(ModelLoadError, match=said) as caught:
        config_of(tmp_path, metadata={key: value})
    assert "\n" not in str(caught.value)


def test_uniform_arrays_and_windows_beyond_the_context_change_nothing(tmp_path):
    """Some writers give one head count per layer, or a window no position reaches."""
    metadata = {"llama.attention.head_count_kv": [2, 2], "llama.attention.sliding_window": 512}
    assert config_of(tmp_path, metadata=metadata).num_kv_heads == 2


def test_other_architectures_are_named_with_those_that_work(tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    other = rewrite(path, tmp_path / "other.gguf", architecture="mamba")
    with pytest.raises(
        ModelLoadError, match="'mamba' is not supported; edgekv runs llama, qwen2, qwen3 models"
    ):
        ModelConfig.from_gguf(open_gguf(other))
    adapter = write_tiny_gguf(tmp_path / "adapter.gguf", metadata={"general.type": "adapter"})
    with pytest.raises(ModelLoadError, match="holds a 'adapter'"):
        ModelConfig.from_gguf(open_gguf(adapter))


def test_missing_extra_and_ill_typed_tensors(tmp_path):
    """Each gets one error with the tensor's name."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    cases = {
        "'blk.1.ffn_up.weight' is missing": {
            "drop_tensors": ["blk.1.ffn_up.weight"],
            "add": {"x": np.zeros(4)},
        },
        "'blk.0.attn_output.bias' has no place": {"add": {"blk.0.attn_output.bias": np.zeros(64)}},
        "'output_norm.weight' has the type I32": {
            "drop_tensors": ["output_norm.weight"],
            "add": {"output_norm.weight": np.ones(64, np.int32)},
        },
        "too few for 1000 layers": {"drop": ["llama.block_count"], "set": {"llama.block_count": 1000}},
    }
    for said, change in cases.items():
        with pytest.raises(ModelLoadError, match=said):
            ModelConfig.from_gguf(open_gguf(rewrite(path, tmp_path / "changed.gguf", **change)))


def test_bundled_model():
    path = bundled_model()
    if path is None:
        pytest.skip("the bundled model is not installed")
    config = ModelConfig.from_gguf(open_gguf(path))
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.head_dim, config.context_length, config.rope_theta, config.tied_head) == (
        64,
        8192,
        1e5,
        True,
    )


def rewrite(path, target, *, architecture="llama", drop=(), drop_tensors=(), add=None, **more):
    """A copy of a GGUF file with keys and tensors left out, added or set."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in drop:
            continue
        kinds = field.types
        writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for name, value in more.get("set", {}).items():
        writer.add_uint32(name, value)
    for tensor in reader.tensors:
        if tensor.name not in drop_tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in (add or {}).items():
        writer.add_tensor(name, values if values.dtype == np.int32 else values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
