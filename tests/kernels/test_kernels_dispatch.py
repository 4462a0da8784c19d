"""The choice of a form: told, forced, refused."""

import pytest
import torch

import edgekv_kernels
from edgekv_kernels import dispatch, openmp


def test_describe_names_every_choice():
    """`doctor` prints these keys."""
    told = edgekv_kernels.describe()
    assert set(told) == {"backend", "cpu", "cuda", "native", "triton"}
    assert told["cpu"] in ("native", "reference")


def test_unknown_backend_is_refused():
    """A misspelt backend must not silently mean auto."""
    with pytest.raises(ValueError, match="unknown kernel backend 'natvie'"):
        edgekv_kernels.use("natvie")


def test_forced_is_undone_after_an_error():
    """A failing test must not leave its form behind."""
    before = edgekv_kernels.describe()

    def fail():
        with edgekv_kernels.forced("reference"):
            assert edgekv_kernels.describe()["cpu"] == "reference"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert edgekv_kernels.describe() == before


def test_missing_extension_is_announced_once(monkeypatch):
    """A slow fallback in silence is a bug report nobody can read; a warning per call is noise."""
    monkeypatch.setattr(dispatch, "native", None)
    monkeypatch.setattr(dispatch, "_announced", False)
    monkeypatch.setattr(dispatch, "_native_note", "extension not built")
    monkeypatch.setattr(dispatch, "_cpu_form", "reference")
    monkeypatch.setattr(dispatch, "_backend", "auto")
    x, weight = torch.ones(1, 4), torch.ones(4)
    with pytest.warns(RuntimeWarning, match="extension not built") as caught:
        [edgekv_kernels.rms_norm(x, weight, 0.0) for _ in range(2)]
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match="extension not built"):
        edgekv_kernels.use("native")


@pytest.mark.skipif(dispatch.native is None, reason="extension not built")
def test_one_openmp_library():
    """Two OpenMP runtimes spin against each other on the same cores."""
    libraries = [path for path in openmp._mapped_libraries() if "gomp" in path or "omp" in path]
    assert len(libraries) == 1, libraries
