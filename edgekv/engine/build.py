"""Puts an engine together: model file -> decoder, limits -> tiers, data directory -> store."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgekv.cache.leaf import LeafShape
from edgekv.cache.ledger import Ledger, Tier
from edgekv.engine.budget import Budgets
from edgekv.engine.engine import Engine
from edgekv.engine.front import IdsFront, ModelFront
from edgekv.engine.machine import choose_device, device_budget, free_memory, num_cores
from edgekv.engine.positions import VirtualLayout
from edgekv.engine.runner import Runner
from edgekv.engine.selected import SelectedAttention
from edgekv.errors import ConfigError, ModelLoadError
from edgekv.models.config import ModelConfig
from edgekv.models.gguf import open_gguf
from edgekv.models.template import ChatTemplate
from edgekv.models.tokenizer import Tokenizer
from edgekv.models.weights import choose_mode, load_decoder
from edgekv.policies.placement import Placement
from edgekv.policies.selection.cascade import Cascade
from edgekv.policies.selection.methods import SELECTORS
from edgekv.policies.selection.sentence import Sentence
from edgekv.tiers.disk import DiskTier
from edgekv.tiers.lane import CopyLane
from edgekv.tiers.memory import MemoryTier
from edgekv.tiers.mover import Mover
from edgekv.tiers.residency import Residency, smallest_device_slots
from edgekv_storage import Layout, PrefillCost, Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekv.config import Config
    from edgekv.models.decoder import Decoder
    from edgekv.models.gguf import GGUFFile
    from edgekv.policies.selection.selector import Selector
    from edgekv_storage import DataDir, Keys

KV_DTYPE_CODE = 1  # bf16, leaf layout [2, kv heads, 16, head_dim]; a change of either makes a new code

_NOMINAL_SPEED = 1e11  # multiplications a second


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model: what computes, what speaks for it, and why its weights are held as they are."""

    decoder: Decoder
    front: ModelFront | IdsFront
    kv_fingerprint: bytes
    weights_mode: str
    weights_reason: str


def build_engine(
    config: Config, model: Path, *, data_dir: DataDir | None, keys: Keys | None
) -> tuple[Engine, ModelFront]:
    """Load the model and assemble the engine; memory tiers only without `data_dir`, no encryption without `keys`.

    Raises:
        ModelLoadError: the file is damaged or unsupported.
        ConfigError: a limit is too small for the model, or the device asked for is not there.
        edgekv_storage.StorageError: the data directory cannot be used.
    """
    loaded = load_model(config, model)
    front, fingerprint = loaded.front, loaded.kv_fingerprint
    assert isinstance(front, ModelFront)

    def reload() -> Model:  # knows neither `loaded` nor its weights, or they would never be freed
        again = load_model(config, model, with_front=False)
        if again.kv_fingerprint != fingerprint:
            raise ModelLoadError(f"{model} became another model while it was not loaded; open a new Runtime")
        return dataclasses.replace(again, front=front)

    try:
        return assemble(config, loaded, data_dir=data_dir, keys=keys, reload=reload), front
    except BaseException:
        loaded.front.close()
        raise


def load_model(config: Config, path: Path, *, with_front: bool = True) -> Model:
    """Read, check and pack one model file; `with_front=False` needs no tokenizer library."""
    torch.set_num_threads(config.threads or num_cores())
    device = choose_device(config.device)
    with open_gguf(path) as file:
        model_config = ModelConfig.from_gguf(file)
        mode, reason = choose_mode(file, config.weights, free_memory(device))
        front = _front(file, model_config) if with_front else _ids_front(file, model_config)
        decoder = load_decoder(file, model_config, device, mode)
        key = hashlib.blake2b(front.fingerprint + bytes([KV_DTYPE_CODE]), digest_size=32).digest()
    return Model(decoder, front, key, mode, reason)


def _front(file: GGUFFile, config: ModelConfig) -> ModelFront:
    tokenizer = Tokenizer(file, config)
    template = ChatTemplate.from_gguf(file, tokenizer)
    return ModelFront(tokenizer, template, file.fingerprint(), config.context_length, config.name)


def _ids_front(file: GGUFFile, config: ModelConfig) -> IdsFront:
    return IdsFront(file.fingerprint(), config.context_length, config.name)


def assemble(
    config: Config,
    model: Model,
    *,
    data_dir: DataDir | None,
    keys: Keys | None = None,
    in_place: bool | None = None,
    reload: Callable[[], Model] | None = None,
) -> Engine:
    """Tiers within the limits around a loaded model. `in_place` overrides whether host leaves are attended
    where they lie (tests exercise the streaming of a GPU on the CPU with it). `reload` gives the model again after
    it was unloaded.
    """
    store, front = None, model.front
    c = model.decoder.config
    _check_limits(_ledger(config, model, None), _shape(c), in_place=_is_in_place(model, in_place))
    if data_dir is not None:
        shape = _shape(c)
        layout = Layout(shape.num_layers, shape.leaf_bytes, KV_DTYPE_CODE, model.kv_fingerprint)
        cost = prefill_cost(c)
        quota = config.disk_budget
        store = Store.open(data_dir, layout, quota_bytes=quota, io=config.io, keys=keys, prefill_cost=cost)
    rebuild = None if reload is None else lambda: _parts(config, reload(), store, in_place)
    return Engine(*_parts(config, model, store, in_place), front, rebuild)


def _parts(
    config: Config, model: Model, store: Store | None, in_place: bool | None
) -> tuple[Runner, Residency, Ledger]:
    """What computes, within its limits, over a store that is open."""
    device, shape = model.decoder.device, _shape(model.decoder.config)
    in_place = _is_in_place(model, in_place)
    ledger = _ledger(config, model, store)
    _check_limits(ledger, shape, in_place=in_place)
    disk = None if store is None else DiskTier(store, shape, ledger)
    on_device = MemoryTier(Tier.DEVICE, shape, ledger, device)
    above = on_device if in_place else None
    is_cpu = device.type == "cpu"
    host = MemoryTier(Tier.HOST, shape, ledger, torch.device("cpu"), pinned=not is_cpu, above=above)
    mover = Mover(
        device=on_device,
        host=host,
        disk=disk,
        lane=CopyLane(device),
        in_place=in_place,
    )
    residency = Residency(mover, Placement())
    selected = None if config.attention == "exact" else selected_attention(config, model, residency)
    runner = Runner(model.decoder, residency, selected, config.attention)
    return runner, residency, ledger


def _shape(config: ModelConfig) -> LeafShape:
    return LeafShape(config.num_layers, config.num_kv_heads, config.head_dim)


def _is_in_place(model: Model, asked: bool | None) -> bool:
    return model.decoder.device.type == "cpu" if asked is None else asked


def _ledger(config: Config, model: Model, store: Store | None) -> Ledger:
    device_bytes = device_budget(config.device_budget, model.decoder.device)
    return Ledger(device_bytes, config.host_budget, 0 if store is None else config.disk_budget)


def make_selector(name: str, front: ModelFront | IdsFront) -> Selector:
    """The method of that name."""
    selector = SELECTORS[name]()
    if isinstance(selector, Sentence) and isinstance(front, ModelFront):
        selector.end_ids = front.tokenizer.sentence_ends()
    if isinstance(selector, Cascade) and isinstance(front, ModelFront):
        selector.words = front.tokenizer.words
    return selector


def selected_attention(
    config: Config, model: Model, residency: Residency, selector: Selector | None = None
) -> SelectedAttention:
    """What attends to a budget, with the budgets and (without `selector`) by the method of `config`."""
    decoder = model.decoder
    layout = VirtualLayout(decoder.rope, decoder.config.context_length)
    selector = make_selector(config.selection, model.front) if selector is None else selector
    budgets = Budgets.made(config.budget, config.prefill_budget, config.window)
    made = SelectedAttention(residency, selector, layout, budgets, decoder.config.head_dim**-0.5)
    residency.worth_of = made.worth_of
    return made


def prefill_cost(config: ModelConfig) -> PrefillCost:
    """What eviction weighs, from the shape of the model: only the ratio of the two parts counts there.

    Multiplications of a token: one for each weight, and two (scores, values) for each token before it, head and
    dimension. Divided by a nominal speed, the same for both.
    """
    c, width = config, config.num_heads * config.head_dim
    attention = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
    weights = c.num_layers * (attention + 3 * c.hidden_size * c.ffn_size)
    return PrefillCost(weights / _NOMINAL_SPEED, 2 * width * c.num_layers / _NOMINAL_SPEED)


def _check_limits(ledger: Ledger, shape: LeafShape, *, in_place: bool) -> None:
    needed = smallest_device_slots(shape.num_layers) * shape.leaf_bytes
    if ledger[Tier.DEVICE].capacity < needed:
        raise ConfigError(
            f"--device-budget {ledger[Tier.DEVICE].capacity} is too small: this model needs {needed} bytes "
            f"({needed / (1 << 20):.1f} MiB) to take one step"
        )
    if not in_place and ledger[Tier.HOST].capacity < needed:
        raise ConfigError(f"--host-budget is too small: copies to a GPU pass through {needed} bytes of it")
