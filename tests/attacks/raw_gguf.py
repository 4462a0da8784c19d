"""GGUF files put together by hand, so that any field can be a lie."""

import struct

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
_PACK = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q"}


def string(text: str | bytes, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def key(name: str | bytes, kind: int, value) -> bytes:
    return string(name) + struct.pack("<I", kind) + (string(value) if kind == STRING else _plain(kind, value))


def array(name: str, kind: int, payload: bytes, count: int) -> bytes:
    return string(name) + struct.pack("<IIQ", ARRAY, kind, count) + payload


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_bytes(
    keys: list[bytes] = (),
    tensors: list[bytes] = (),
    data: bytes = bytes(256),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these parts; the counts default to the truth, `data` starts at the next multiple of 32."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def _plain(kind: int, value) -> bytes:
    return value if isinstance(value, bytes) else struct.pack(_PACK[kind], value)
