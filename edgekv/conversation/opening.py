"""What a Runtime opens and closes, in which order, and what it does without when the disk is not to be had.

Knows the data directory, its transcripts, how an engine is asked for, and how damaged turns are put together again
with its help. Knows neither conversations nor models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgekv.conversation.journal import translated
from edgekv.conversation.library import Library
from edgekv.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgekv.config import Config
    from edgekv.conversation.journal import Identity
    from edgekv.conversation.render import FrontLike
    from edgekv.conversation.transcript import Rebuild
    from edgekv.conversation.turns import TurnTree
    from edgekv.conversation.unlock import Unlock
    from edgekv.conversation.worker import EngineThread
    from edgekv.engine.request import EngineLike
    from edgekv_storage import DataDir, KeyChain


class EngineFactory(Protocol):
    """Makes the engine and the model's face; runs in the engine's thread."""

    def __call__(
        self, config: Config, model: Path, *, data_dir: DataDir | None, keys: KeyChain | None
    ) -> tuple[EngineLike, FrontLike]:
        """`data_dir` is the opened, locked directory, or None for memory tiers only; `keys` are its own."""
        ...


def open_files(path: Path, unlock: Unlock) -> tuple[DataDir | None, Library | None, str | None]:
    """The data directory and its transcripts, and why they may not be written (None: they may)."""
    from edgekv_storage import DataDir, DiskFull, Locked, StorageError, Unwritable  # noqa: PLC0415  numpy too

    reason: str | None = None
    for open_directory in (DataDir.open, DataDir.open_read_only):
        try:
            data_dir = open_directory(path)
        except (Locked, Unwritable, DiskFull) as error:
            reason = reason or str(error)
            continue
        except StorageError as error:
            if reason is not None:
                break
            raise StoreError(str(error)) from error
        try:
            with translated():
                return data_dir, Library(data_dir, unlock.open(data_dir)), reason
        except BaseException as error:
            data_dir.close()
            if not isinstance(error.__cause__, (DiskFull, Unwritable)):
                raise
            reason = reason or str(error)
    return None, None, reason


def build_or_degrade(
    build: EngineFactory,
    config: Config,
    model: Path,
    data_dir: DataDir | None,
    keys: KeyChain | None,
    trouble: list[str],
) -> tuple[EngineLike, FrontLike]:
    """The engine; without its disk tier, and `trouble` told, where the disk refuses it."""
    from edgekv_storage import DiskFull, Unwritable  # noqa: PLC0415  numpy comes with it

    if data_dir is not None:
        try:
            return build(config, model, data_dir=data_dir, keys=keys)
        except (DiskFull, Unwritable) as error:
            trouble.append(str(error))
    return build(
        config, model, data_dir=None, keys=None
    )  # outside of `except`: the first attempt's memory is free


def rebuild_of(worker: EngineThread, identity: Identity) -> Rebuild | None:
    """Puts damaged turns together again, where this model's own token ids are stored; tells what it did."""
    if identity.meta.fingerprint != worker.front.fingerprint:
        return None

    def paths() -> list[NDArray[np.int32]]:
        with translated():
            return worker.engine.stored_paths(identity.sequence_id)

    def rebuild(tree: TurnTree) -> dict[int, str]:
        from edgekv.conversation.rebuild import Rebuilder  # noqa: PLC0415  numpy comes with it

        return Rebuilder(worker.front, identity.meta.system, paths).rebuild(tree, tell=worker.add_notice)

    return rebuild


def close_files(library: Library | None, data_dir: DataDir | None) -> None:
    """Close what `open_files` opened. Raises StoreError, when all is closed, where turns are lost with it."""
    try:
        if library is not None:
            library.close()
    finally:
        if data_dir is not None:
            data_dir.close()


def close_all(worker: EngineThread, library: Library | None, data_dir: DataDir | None) -> None:
    """The engine first: it writes into what is closed then."""
    try:
        worker.close()
    finally:
        close_files(library, data_dir)
