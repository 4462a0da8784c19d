"""What pyproject.toml cannot say: the native extension, and one clear line where no compiler is found.

llama-cpp-python, a dependency, is compiled when it is installed. Without a compiler that fails with pages of
output after minutes, so it is looked for here, before anything is built. Everything else is in pyproject.toml.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("kernels/edgekv_kernels/native")
COMPILERS = {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}
ADVICE = (
    "edgekv: no C and C++ compiler found, and llama-cpp-python, which edgekv needs, is compiled during "
    "installation. Install one (Debian, Ubuntu: apt install build-essential; Fedora: dnf install gcc-c++; "
    "Arch: pacman -S base-devel) and repeat the command."
)


def has_compilers() -> bool:
    """Whether there is a C and a C++ compiler, named by CC and CXX or under a usual name."""
    return all(
        os.environ.get(variable) or any(map(shutil.which, names)) for variable, names in COMPILERS.items()
    )


def has_tokenizer() -> bool:
    """Whether llama-cpp-python is installed where edgekv is going to be: then nothing has to be compiled."""
    return any(Path(sysconfig.get_path(kind), "llama_cpp").is_dir() for kind in ("purelib", "platlib"))


if not has_compilers() and not has_tokenizer():
    sys.exit(ADVICE)

setup(
    ext_modules=[
        Extension(
            "edgekv_kernels._native",
            sources=[str(NATIVE / "module.c")],
            depends=sorted(map(str, NATIVE.glob("*.h"))),
            extra_compile_args=["-O3", "-fopenmp"],
            optional=True,  # without it the torch forms run, slower; `edgekv doctor` says so
        )
    ]
)
