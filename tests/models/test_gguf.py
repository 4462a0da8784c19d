"""The GGUF reader on files that are right: what it finds is what the `gguf` package finds."""

import gguf
import numpy as np
import pytest
from gguf_blocks import QUANTS
from gguf_writer import ARCHITECTURES, write_tiny_gguf

from edgekv.errors import ModelLoadError
from edgekv.models.catalog import bundled_model
from edgekv.models.gguf import DEQUANTIZABLE, GGMLType, open_gguf
from edgekv.models.gguf import file as gguf_file


def test_type_table_agrees_with_the_gguf_package():
    """A wrong block size reads a tensor's neighbour as weights."""
    for kind in GGMLType:
        theirs = gguf.GGMLQuantizationType(kind.value)
        assert theirs.name == kind.name
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block_elements, kind.block_bytes)
    decodable = {"F32", "F16"} | {kind.name for kind in gguf.quants._type_traits}
    assert {kind.name for kind in DEQUANTIZABLE} == decodable == set(QUANTS)


@pytest.mark.parametrize("quant", QUANTS)
def test_every_type_is_placed_where_the_gguf_package_places_it(tmp_path, quant):
    """Offsets and lengths of block types with odd sizes."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quant=quant)
    reader = gguf.GGUFReader(path)
    file = open_gguf(path)
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        info = file.tensors[tensor.name]
        assert info.shape == tuple(tensor.shape.tolist())
        assert info.numpy_shape == info.shape[::-1]
        assert (info.ggml_type, info.offset) == (tensor.tensor_type.value, tensor.data_offset)
        stored = file.tensor_bytes(tensor.name)
        assert stored.tobytes() == tensor.data.tobytes()
        assert not stored.flags.writeable


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_metadata_values_are_those_written(tmp_path, architecture):
    """Each of the value types, arrays included."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", architecture, metadata={"x.neg": -3.5, "x.yes": True})
    metadata = open_gguf(path).metadata
    for name, field in gguf.GGUFReader(path).fields.items():
        if not name.startswith("GGUF."):
            ours = metadata[name]
            assert (list(ours) if isinstance(field.contents(), list) else ours) == field.contents(), name
    assert metadata["x.neg"] == -3.5
    assert metadata["x.yes"] is True


def test_strings_of_an_array_stay_in_the_file(tmp_path):
    """A vocabulary of 150,000 strings must not become 150,000 objects at open."""
    tokens = open_gguf(write_tiny_gguf(tmp_path / "tiny.gguf")).metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 384
    assert tokens[1] == "<|im_start|>"
    assert tokens[1:3] == ["<|im_start|>", "<|im_end|>"]
    assert tokens.raw(2) == b"<|im_end|>"
    assert list(tokens.raw_all())[:3] == [b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>"]
    with pytest.raises(IndexError):
        tokens[384]


@pytest.mark.parametrize("whole_file_bytes", [1 << 30, 0], ids=["whole", "sampled"])
def test_fingerprint_follows_content_not_place(tmp_path, monkeypatch, whole_file_bytes):
    """A copied model kept its conversations; a fine-tune or a new rope base must not."""
    monkeypatch.setattr(gguf_file, "WHOLE_FILE_BYTES", whole_file_bytes)
    base = open_gguf(write_tiny_gguf(tmp_path / "a.gguf", quant="Q8_0")).fingerprint()
    assert len(base) == 32
    assert open_gguf(write_tiny_gguf(tmp_path / "b.gguf", quant="Q8_0")).fingerprint() == base
    others = [{"seed": 1}, {"rope_theta": 5e5}, {"rope_freqs": True}, {"tokenizer": "spm"}, {"bias": True}]
    prints = [
        open_gguf(write_tiny_gguf(tmp_path / "c.gguf", quant="Q8_0", **other)).fingerprint()
        for other in others
    ]
    assert len({base, *prints}) == len(others) + 1


def test_sampled_fingerprint_sees_a_change_of_one_matrix(tmp_path, monkeypatch):
    """An adapter merged into one matrix changes no other tensor."""
    monkeypatch.setattr(gguf_file, "WHOLE_FILE_BYTES", 0)
    monkeypatch.setattr(gguf_file, "SAMPLE_BYTES", 64)
    path = write_tiny_gguf(tmp_path / "a.gguf")
    file = open_gguf(path)
    before = file.fingerprint()
    info = file.tensors["blk.1.attn_v.weight"]
    data = bytearray(path.read_bytes())
    weights = np.frombuffer(data, np.float32, info.num_bytes // 4, info.offset).copy() * 1.01
    data[info.offset : info.offset + info.num_bytes] = weights.tobytes()
    path.write_bytes(data)
    assert open_gguf(path).fingerprint() != before


def test_file_is_closed_only_when_no_view_is_left(tmp_path):
    """Unmapping under a live tensor would end the process."""
    with open_gguf(write_tiny_gguf(tmp_path / "a.gguf")) as file:
        view = file.tensor_bytes("output_norm.weight")
    assert view.view(np.float32).mean() == pytest.approx(1.0, abs=0.1)
    del view
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.tensor_bytes("output_norm.weight")


def test_alignment_of_the_file_is_used(tmp_path):
    """Files may align tensors to more than 32 bytes."""
    file = open_gguf(write_tiny_gguf(tmp_path / "a.gguf", alignment=256))
    assert all(info.offset % 256 == 0 for info in file.tensors.values())


def test_missing_file_says_how_to_list_models(tmp_path):
    with pytest.raises(ModelLoadError, match="no such file; `edgekv models`"):
        open_gguf(tmp_path / "none.gguf")


def test_bundled_model_opens():
    """The real file, 272 tensors and 49,152 tokens."""
    path = bundled_model()
    if path is None:
        pytest.skip("the bundled model is not installed")
    file = open_gguf(path)
    assert len(file.tensors) == 272
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    assert file.tensors["token_embd.weight"].ggml_type is GGMLType.Q8_0
