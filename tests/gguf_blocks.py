"""Quantized weights for tiny test models: every ggml type that `gguf.quants` can dequantize.

Where `gguf` can quantize, normal weights are quantized. Where it cannot, a block's bits are random and only
its scale is chosen, which is all a test needs: the reader and the reference must decode the same bytes.
"""

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

QUANTS = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
)  # fmt: skip

# Byte offset of the fp16 scale in a block, and of the fp16 offset's with the ratio that centres the values.
_SCALE_AT = {
    "Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208, "IQ1_S": 0, "IQ2_XXS": 0, "IQ2_XS": 0,
    "IQ2_S": 0, "IQ3_XXS": 0, "IQ3_S": 0, "IQ4_NL": 0, "IQ4_XS": 0,
}  # fmt: skip
_OFFSET_AT = {"Q2_K": (82, 1.5), "Q4_K": (2, 7.5), "Q5_K": (2, 15.5)}


def quantized(rng: np.random.Generator, rows: int, columns: int, quant: str) -> np.ndarray:
    """Weights `[rows, columns]` of standard deviation about 1/sqrt(columns), as stored bytes or floats."""
    kind = gguf.GGMLQuantizationType[quant]
    target = columns**-0.5
    if quant in _SCALE_AT or quant in ("IQ1_M", "NVFP4"):
        return _random_blocks(rng, rows, columns, quant, target)
    weights = rng.normal(0.0, target, (rows, columns)).astype(np.float32)
    if quant == "F32":
        return weights
    if quant == "F16":
        return weights.astype(np.float16)
    return quantize(weights, kind)


def block_size(quant: str) -> int:
    """Elements in one block: rows must be multiples of it."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[quant]][0]


def _random_blocks(
    rng: np.random.Generator, rows: int, columns: int, quant: str, target: float
) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[quant]
    elements, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // elements, num_bytes), dtype=np.uint8)
    _set_scale(blocks, quant, 2.0**-6)
    spread = float(dequantize(blocks, kind).std())
    _set_scale(blocks, quant, 2.0**-6 * target / spread)
    return blocks.reshape(rows, -1)


def _set_scale(blocks: np.ndarray, quant: str, scale: float) -> None:
    if quant == "NVFP4":
        blocks[:, :4] = gguf.quants.NVFP4.fp32_to_ue4m3(np.array([scale]))
        return
    bits = np.array([scale], np.float16).view(np.uint16)
    if quant == "IQ1_M":  # its fp16 is spread over the top four bits of four words
        words = blocks[:, 48:56].view("<u2")
        words &= 0x0FFF
        words |= (bits << np.array([12, 8, 4, 0], np.uint16)) & 0xF000
        return
    at = _SCALE_AT[quant]
    blocks[:, at : at + 2] = bits.view(np.uint8)
    if quant in _OFFSET_AT:
        at, ratio = _OFFSET_AT[quant]
        blocks[:, at : at + 2] = np.array([scale * ratio], np.float16).view(np.uint8)
