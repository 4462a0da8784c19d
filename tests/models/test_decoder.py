"""The decoder against an independent fp32 transformer, for every architecture and every ggml type."""

import numpy as np
import pytest
import torch
from gguf_writer import write_tiny_gguf
from reference_model import ReferenceModel

import edgekv_kernels as kernels
from edgekv.models.config import ModelConfig
from edgekv.models.gguf import DEQUANTIZABLE, open_gguf
from edgekv.models.linear import FEW_ROWS
from edgekv.models.packing import decode, pack
from edgekv.models.weights import choose_mode, decoder_bytes, load_decoder

TYPES = sorted(kind.name for kind in DEQUANTIZABLE)
PROMPT = [5, 9, 2, 77, 130, 4, 8, 15, 16, 23, 42, 108, 200, 3, 60, 61, 62, 63, 64, 300]


def load(path, mode="compact"):
    file = open_gguf(path)
    config = ModelConfig.from_gguf(file)
    return load_decoder(file, config, torch.device("cpu"), mode), ReferenceModel(path, config)


@torch.inference_mode()
def logits_of(decoder, ids, rows):
    """All logits, `rows` tokens to a pass, with a plain cache of what came before (bf16, as in the pools)."""
    c, past, out = decoder.config, {}, []
    for start in range(0, len(ids), rows):
        block = ids[start : start + rows]

        def attend(layer, q, k, v, start=start):
            old = past.get(layer)
            keys = (k, v) if old is None else (torch.cat([old[0], k]), torch.cat([old[1], v]))
            past[layer] = keys
            padded = torch.cat([q.new_zeros(start, *q.shape[1:]), q])
            return kernels.attend_block(padded, *keys, c.head_dim**-0.5)[0][start:]

        hidden = decoder.forward(block, start, attend)
        out.append(decoder.logits(hidden))
    return torch.cat(out)


def distance(got, want):
    """Root mean square of the difference, in standard deviations of the logits."""
    return float((got - want).square().mean().sqrt() / want.std())


ARCHITECTURES = {
    "llama": {"architecture": "llama"},
    "llama with its own head": {"architecture": "llama", "tied": False},
    "llama 3 factors": {"architecture": "llama", "rope_freqs": True, "rope_theta": 500000.0},
    "linear rope": {"architecture": "llama", "rope_scaling": ("linear", 4.0, 512)},
    "mistral-like groups": {"architecture": "llama", "heads": 8, "kv_heads": 1, "head_dim": 16},
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3", "head_dim": 32, "tied": False},
}


@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("rows", [1, FEW_ROWS + 4])
def test_decoder_equals_reference(tmp_path, options, rows):
    """Guards rope pairing, head grouping, biases, qk-norm and norms: any of them wrong moves logits by whole
    standard deviations. Rounding to 16 bits (KV always, matrices for many rows) moves them by a few hundredths."""
    decoder, reference = load(write_tiny_gguf(tmp_path / "m.gguf", **options))
    assert distance(logits_of(decoder, PROMPT, rows), reference.logits(PROMPT)) < 0.05


@pytest.mark.parametrize("quant", TYPES)
def test_every_type_loads(tmp_path, quant):
    """Guards each block layout: a nibble in the wrong place is a different matrix. The second mode must agree."""
    path = write_tiny_gguf(tmp_path / "m.gguf", quant=quant)
    decoder, reference = load(path, "compact")
    want = reference.logits(PROMPT)
    assert distance(logits_of(decoder, PROMPT, 1), want) < 0.05
    fast, _ = load(path, "fast")
    assert torch.equal(logits_of(fast, PROMPT, 20), logits_of(decoder, PROMPT, 20))


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"])
def test_affine_types_are_not_requantized(tmp_path, quant):
    """Guards "repacked without requantizing": the unpacked weights are the file's own values to fp32 rounding."""
    file = open_gguf(write_tiny_gguf(tmp_path / "m.gguf", quant=quant))
    info = file.tensors["blk.0.ffn_down.weight"]
    columns, rows = info.shape
    data = file.tensor_bytes(info.name)
    packed = pack(data, info.ggml_type, rows, columns)
    out = torch.empty(rows, columns)
    (kernels.unpack4 if isinstance(packed, kernels.Packed4) else kernels.unpack8)(packed, out)
    want = decode(data, info.ggml_type, rows, columns, torch.float32)
    assert float((out - want).abs().max()) <= 3e-7 * float(want.abs().max()) * 16


def test_yarn_frequencies_against_llama_cpp_formula(tmp_path):
    """Guards the yarn ramp: channels that turn often keep their frequency, slow ones are divided by the factor."""
    path = write_tiny_gguf(
        tmp_path / "m.gguf", rope_scaling=("yarn", 4.0, 256), head_dim=64, heads=2, kv_heads=1
    )
    rope = load(path)[0].rope
    true = 10000.0 ** (-np.arange(32) / 32)
    ratio = rope.frequencies / true
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(0.25)
    assert (np.diff(ratio) <= 1e-12).all()
    assert rope.amplitude == pytest.approx(1 + 0.1 * np.log(4.0))


def test_weights_modes(tmp_path):
    """Guards the promise on memory: compact stays within 1.6x of a Q4 file, fast adds two bytes a weight, and
    `auto` takes fast only where half of the free memory stays free."""
    path = write_tiny_gguf(tmp_path / "m.gguf", quant="Q4_0", hidden=256, ffn=1024, num_layers=4)
    file = open_gguf(path)
    compact, fast = decoder_bytes(load(path)[0]), decoder_bytes(load(path, "fast")[0])
    tensors = sum(info.num_bytes for info in file.tensors.values())
    assert compact <= 1.6 * tensors
    values = sum(
        int(np.prod(i.shape)) for n, i in file.tensors.items() if n.startswith("blk.") and len(i.shape) > 1
    )
    assert fast - compact == 2 * values
    assert choose_mode(file, "auto", 1 << 40)[0] == "fast"
    assert choose_mode(file, "auto", fast)[0] == "compact"
    assert choose_mode(file, "fast", 0)[0] == "fast"
