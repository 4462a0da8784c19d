"""Work that has to happen in a process of its own: a conversation stored by another process, clean memory figures.

Parent and child speak JSON: a task on stdin, one answer on stdout. `python -m edgekv.bench.child` is the child.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekv.bench.child_speech import Answer, Task
from edgekv.errors import EdgeKVError

if TYPE_CHECKING:
    from edgekv.config import Config


def run_child(kind: str, config: Config, model: Path, **fields: Any) -> Answer:
    """Run a task and wait for it. Raises EdgeKVError with the child's own message when it failed."""
    task = Task(kind=kind, options=_options(config), model=str(model), **fields)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKV_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(  # our own interpreter and module
        [sys.executable, "-m", "edgekv.bench.child"],
        input=msgspec.json.encode(task),
        stdout=subprocess.PIPE,
        env=environment,
        check=False,
    )
    try:
        answer = msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.DecodeError as error:
        raise EdgeKVError(
            f"the measuring process ended with code {done.returncode}: see its lines above"
        ) from error
    if answer.error:
        raise EdgeKVError(answer.error)
    return answer


def _options(config: Config) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    paths = {name: str(value) for name, value in values.items() if isinstance(value, Path)}
    return {name: value for name, value in (values | paths).items() if value is not None}


def main() -> None:
    """Read a task, answer it."""
    from edgekv.bench import child_tasks  # noqa: PLC0415  # torch: only the child needs it

    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    try:
        answer = child_tasks.run(task)
    except EdgeKVError as error:
        answer = Answer(error=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
