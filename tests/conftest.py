"""What every test gets: no options from outside, a data directory of its own."""

import gc
import os
import random
import sys
from pathlib import Path

import pytest

# Two processes run side by side: a thread that spins for its next loop takes the other one's core (read when torch
# is loaded).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@pytest.fixture(autouse=True)
def isolated_options(monkeypatch, tmp_path_factory):
    """No test may depend on, or touch, the configuration and conversations of whoever runs it."""
    for variable in list(os.environ):
        if variable.startswith("EDGEKV_"):
            monkeypatch.delenv(variable)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")  # theirs, in particular


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """The same random numbers for each test, whatever ran before it in the same process."""
    random.seed(1)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(1)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(1)


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """An empty data directory."""
    return tmp_path / "data"


def pytest_addoption(parser):
    """Sizes of the campaigns; without them they run at the sizes of CI. And a way to accept new looks."""
    parser.addoption(
        "--new-looks", action="store_true", help="write what the chat looks like now: tests/tui/looks"
    )
    sizes = parser.getgroup("stress", "sizes of `pytest -m stress`, see docs/reliability.md")
    sizes.addoption("--kills", type=int, help="processes to kill")
    sizes.addoption("--power-losses", type=int, help="power losses to play, of SQLite and of segments each")
    sizes.addoption("--bit-flips", type=int, help="bits to flip, one at a time")
    sizes.addoption("--cancels", type=int, help="answers to stop at random moments")
    sizes.addoption("--seed", type=int, default=1, help="of every random choice")


@pytest.fixture
def campaign_size(request):
    """`campaign_size("--kills", ci=40)`: the size asked for, or CI's. One code path serves both."""

    def size(option, *, ci):
        asked = request.config.getoption(option)
        return ci if asked is None else asked

    return size


def pytest_configure(config):
    """Triton's forms are interpreted, on the CPU; not where a GPU's own tests are asked for."""
    if "gpu" not in config.option.markexpr:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported


def pytest_collection_modifyitems(config, items):
    """Long campaigns and GPU tests run when asked for by marker."""
    if not config.option.markexpr:
        for item in items:
            for name in ("slow", "stress"):
                marker = item.get_closest_marker(name)
                if marker and not marker.kwargs.get("ci"):  # with ci=True it is small until asked to be long
                    item.add_marker(pytest.mark.skip(reason=f"long: pytest -m {name}"))
    wants_gpu = [item for item in items if "gpu" in item.keywords]
    if wants_gpu and (os.environ.get("TRITON_INTERPRET") == "1" or not _has_gpu()):
        for item in wants_gpu:
            item.add_marker(
                pytest.mark.skip(reason="needs a CUDA device, and to be asked for: pytest -m gpu")
            )


def pytest_collection_finish():
    """What is imported by now stays: collections of garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _has_gpu():
    import torch  # a second, paid only where a test may need it

    return torch.cuda.is_available()
