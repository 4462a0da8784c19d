"""GGUF files read by us: every count, length and offset is checked before anything else sees the file."""

from edgekv.models.gguf.cursor import StringArray, Value
from edgekv.models.gguf.file import GGUFFile, open_gguf
from edgekv.models.gguf.ggml_types import DEQUANTIZABLE, GGMLType
from edgekv.models.gguf.header import TensorInfo

__all__ = ["DEQUANTIZABLE", "GGMLType", "GGUFFile", "StringArray", "TensorInfo", "Value", "open_gguf"]
