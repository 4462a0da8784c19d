"""Triton's forms become machine code for CUDA: the interpreter takes more than the compiler does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_triton_kernel_compiles_for_cuda(tmp_path, capability):
    """Guards machines with a GPU where there is none: half a minute, in a process without the interpreter."""
    pytest.importorskip("triton")
    import edgekv_kernels

    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(edgekv_kernels.__file__).parents[1]), *sys.path])
    script = Path(__file__).with_name("triton_for_cuda.py")
    ran = subprocess.run(
        [sys.executable, str(script), capability], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    kernels = {line.split()[0] for line in ran.stdout.splitlines()}
    defined = {
        line.removeprefix("def ").split("(")[0]
        for path in (Path(edgekv_kernels.__file__).parent / "triton").glob("*.py")
        for line in path.read_text().split("@triton.jit\n")[1:]
    }
    helpers = {"_bf16_bits", "_low_scale", "_step_scale", "_low", "_step", "turned_dims"}  # called by kernels
    assert kernels == defined - helpers
