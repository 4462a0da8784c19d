"""Opens what a data directory holds by the signatures this version has."""

from __future__ import annotations

import inspect
from typing import Any

import edgekv_storage
from edgekv_storage import DataDir, Store, Transcripts


class NoKeys:
    """Stands for the key chain where there is none."""

    notices: tuple[str, ...] = ()

    def find(self, sequence_id: bytes) -> None:
        return None

    def need(self, sequence_id: bytes) -> None:
        return None

    def destroy(self, sequence_id: bytes) -> None:
        pass

    def finish(self, sequence_id: bytes) -> None:
        pass

    def destroyed(self) -> list[bytes]:
        return []

    def close(self) -> None:
        pass


def _takes(function: Any, name: str) -> bool:
    return name in inspect.signature(function).parameters


def open_keys(directory: DataDir) -> Any:
    try:
        from edgekv_storage.keychain import KeyChain
    except ImportError:
        return NoKeys()
    return KeyChain.open(directory, protection="file")


def open_transcripts(directory: DataDir, keys: Any) -> Transcripts:
    if _takes(Transcripts.open, "keys") and not isinstance(keys, NoKeys):
        return Transcripts.open(directory, keys)
    return Transcripts.open(directory)


def open_store(directory: DataDir, layout: Any, keys: Any, **options: Any) -> Store:
    if _takes(Store.open, "keys") and not isinstance(keys, NoKeys):
        options["keys"] = keys
    return Store.open(directory, layout, free_floor_bytes=0, **options)


def leaf_keys(store: Store, layout: Any, sequence_id: bytes, namespace: bytes, ids: Any) -> list[bytes]:
    if hasattr(store, "leaf_keys"):
        return store.leaf_keys(sequence_id, namespace, ids, None)
    return edgekv_storage.leaf_keys(layout.fingerprint, namespace, ids)
