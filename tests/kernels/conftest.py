"""One fixture runs every kernel test over all forms that this machine can run."""

import pytest

import edgekv_kernels
from edgekv_kernels import dispatch

NATIVE = [f"native-{isa}" for isa in ("avx512vnni", "avx512", "avx2", "base")]


def _leave_native_as_it_was() -> None:
    for isa in ("avx512vnni", "avx512", "avx2", "base"):
        if dispatch.native.choose(isa):
            return


@pytest.fixture(params=["reference", *NATIVE, "triton"])
def form(request):
    """The form in force during the test; native ones once per instruction set of this machine."""
    name = request.param
    backend, _, isa = name.partition("-")
    if backend == "native":
        if dispatch.native is None:
            pytest.skip(edgekv_kernels.describe()["native"])
        if not dispatch.native.choose(isa):
            pytest.skip(f"this processor has no {isa}")
    if backend == "triton":
        pytest.importorskip("triton")
    with edgekv_kernels.forced(backend):
        yield name
    if backend == "native":
        _leave_native_as_it_was()


def worst(actual, expected):
    """Largest difference relative to the largest expected magnitude."""
    scale = expected.abs().max().clamp_min(1e-30)
    return float((actual.double() - expected.double()).abs().max() / scale)


@pytest.fixture(name="worst")
def worst_fixture():
    return worst
