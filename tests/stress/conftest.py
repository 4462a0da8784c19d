"""Fixtures of the campaigns: the shim, and programs that run under it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import shim

NO_COMPILER = "NO C COMPILER (gcc): nothing that needs the disk shim is tested"


@pytest.fixture(scope="session")
def shim_library() -> Path | None:
    """The compiled shim, None without a compiler."""
    return shim.build()


@pytest.fixture
def seed(request) -> int:
    """`--seed`."""
    return request.config.getoption("--seed")


@pytest.fixture
def run_campaign(shim_library):
    """Runs a campaign of this folder in a process of its own and returns its report."""

    def run(module: str, *arguments: object, needs_shim: bool = True, timeout_s: float = 3600) -> dict:
        if needs_shim and shim_library is None:
            pytest.skip(NO_COMPILER)
        command = [sys.executable, str(Path(__file__).with_name(module)), *map(str, arguments)]
        done = subprocess.run(
            command,
            env=shim.environment(shim_library),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.stdout, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
