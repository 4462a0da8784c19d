"""What a measuring child process does; see `child`."""

from __future__ import annotations

from pathlib import Path

from edgekv.bench import talk
from edgekv.bench.child_speech import Answer, Task
from edgekv.bench.memory import MemoryPeak
from edgekv.bench.setting import Setting, generate
from edgekv.bench.steps import forced_steps
from edgekv.config import Config
from edgekv.models.weights import decoder_bytes


def run(task: Task) -> Answer:
    """Do a task of any kind."""
    config = Config().replace({**task.options, "model": task.model})
    setting = Setting(config)
    if task.kind == "talk":  # its Runtime loads the model itself
        return Answer(context_tokens=talk.store(setting, Path(task.store), task.ids))
    with MemoryPeak() as loading:
        weights = decoder_bytes(setting.model.decoder)
    answer = Answer(weights_bytes=weights, load_peak_bytes=loading.bytes or 0)
    if task.kind == "store":
        _store(setting, task)
    elif task.kind == "steps":
        _steps(setting, task, answer)
    else:
        assert task.kind == "load", task.kind
    return answer


def _store(setting: Setting, task: Task) -> None:
    with setting.engine(setting.roomy(len(task.ids) + 1), Path(task.store)) as engine:
        generate(engine, task.ids, durable=True)


def _steps(setting: Setting, task: Task, answer: Answer) -> None:
    """Logits go to a file at once: they must not count as memory of the runtime."""
    with (
        MemoryPeak() as peak,
        setting.engine(setting.config, Path(task.store)) as engine,
        Path(task.logits).open("wb") as out,
    ):
        answer.reused_tokens = generate(engine, task.ids, durable=True).usage.reused_tokens
        out.writelines(logits.cpu().numpy().tobytes() for logits in forced_steps(engine, task.forced))
        use = engine.cache_use()
    answer.device_peak_bytes = use.device_peak_bytes
    answer.host_peak_bytes = use.host_peak_bytes
    answer.disk_peak_bytes = use.disk_peak_bytes
    answer.process_peak_bytes = peak.bytes or 0
