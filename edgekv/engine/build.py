"""Puts an engine together: model file -> decoder, limits -> tiers, data directory -> store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from edgekv_storage import Layout, Store

from edgekv.cache.leaf import LeafShape
from edgekv.cache.ledger import Ledger, Tier
from edgekv.engine.engine import Engine
from edgekv.engine.front import ModelFront
from edgekv.engine.machine import choose_device, device_budget, free_memory, num_cores
from edgekv.engine.runner import Runner
from edgekv.errors import ConfigError
from edgekv.models.config import ModelConfig
from edgekv.models.gguf import open_gguf
from edgekv.models.template import ChatTemplate
from edgekv.models.tokenizer import Tokenizer
from edgekv.models.weights import choose_mode, load_decoder
from edgekv.policies.placement import Placement
from edgekv.tiers.disk import DiskTier
from edgekv.tiers.lane import CopyLane
from edgekv.tiers.memory import MemoryTier
from edgekv.tiers.mover import Mover
from edgekv.tiers.residency import Residency, smallest_device_slots

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv_storage import DataDir

    from edgekv.config import Config
    from edgekv.models.decoder import Decoder

KV_DTYPE_CODE = 1  # bf16, leaf layout [2, kv heads, 16, head_dim]; a change of either makes a new code


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model: what computes, and what speaks for it."""

    decoder: Decoder
    front: ModelFront
    kv_fingerprint: bytes


def build_engine(config: Config, model: Path, *, data_dir: DataDir | None) -> tuple[Engine, ModelFront]:
    """Load the model and assemble the engine; memory tiers only without `data_dir`.

    Raises:
        ModelLoadError: the file is damaged or unsupported.
        ConfigError: a limit is too small for the model, or the device asked for is not there.
        edgekv_storage.StorageError: the data directory cannot be used.
    """
    loaded = load_model(config, model)
    return assemble(config, loaded, data_dir=data_dir), loaded.front


def load_model(config: Config, path: Path) -> Model:
    """Read, check and pack one model file."""
    torch.set_num_threads(config.threads or num_cores())
    device = choose_device(config.device)
    with open_gguf(path) as file:
        model_config = ModelConfig.from_gguf(file)
        mode, _reason = choose_mode(file, config.weights, free_memory(device))
        tokenizer = Tokenizer(file, model_config)
        fingerprint = file.fingerprint()
        front = ModelFront(
            tokenizer=tokenizer,
            template=ChatTemplate.from_gguf(file, tokenizer),
            fingerprint=fingerprint,
            context_length=model_config.context_length,
            name=model_config.name,
        )
        decoder = load_decoder(file, model_config, device, mode)
    key = hashlib.blake2b(fingerprint + bytes([KV_DTYPE_CODE]), digest_size=32).digest()
    return Model(decoder, front, key)


def assemble(config: Config, model: Model, *, data_dir: DataDir | None, in_place: bool | None = None) -> Engine:
    """Tiers within the limits around a loaded model. `in_place` overrides whether host leaves are attended
    where they lie (tests exercise the streaming of a GPU on the CPU with it).
    """
    c, device = model.decoder.config, model.decoder.device
    shape = LeafShape(c.num_layers, c.num_kv_heads, c.head_dim)
    is_cpu = device.type == "cpu"
    in_place = is_cpu if in_place is None else in_place
    disk_bytes = config.disk_budget if data_dir is not None else 0
    ledger = Ledger(device_budget(config.device_budget, device), config.host_budget, disk_bytes)
    _check_limits(ledger, shape, in_place=in_place)
    disk = None
    if data_dir is not None:
        layout = Layout(shape.num_layers, shape.leaf_bytes, KV_DTYPE_CODE, model.kv_fingerprint)
        store = Store.open(data_dir, layout, quota_bytes=disk_bytes, io=config.io)
        disk = DiskTier(store, shape, model.kv_fingerprint, ledger)
    mover = Mover(
        device=MemoryTier(Tier.DEVICE, shape, ledger, device),
        host=MemoryTier(Tier.HOST, shape, ledger, torch.device("cpu"), pinned=not is_cpu),
        disk=disk,
        lane=CopyLane(device),
        in_place=in_place,
    )
    residency = Residency(mover, Placement())
    return Engine(Runner(model.decoder, residency), residency, ledger, model.front)


def _check_limits(ledger: Ledger, shape: LeafShape, *, in_place: bool) -> None:
    needed = smallest_device_slots(shape.num_layers) * shape.leaf_bytes
    if ledger[Tier.DEVICE].capacity < needed:
        raise ConfigError(
            f"--device-budget {ledger[Tier.DEVICE].capacity} is too small: this model needs {needed} bytes "
            f"({needed / (1 << 20):.1f} MiB) to take one step"
        )
    if not in_place and ledger[Tier.HOST].capacity < needed:
        raise ConfigError(f"--host-budget is too small: copies to a GPU pass through {needed} bytes of it")
