"""A stand-in for a GPU where there is none: tensors that say they lie on `cuda:0` and that the host cannot reach.

Arithmetic runs on the CPU, by the reference forms or by Triton's interpreter. Mixing them with host tensors, or
looking into them without copying them, fails as CUDA fails; copies between the two work. Knows nothing of streams,
pinned memory and speed.
"""

import contextlib
import importlib

import pytest
import torch
from torch.overrides import TorchFunctionMode

from edgekv.config import Config
from edgekv.engine import build
from edgekv.tiers.lane import CopyLane
from edgekv_kernels import dispatch

FAR = torch.device("cuda", 0)
_TOLD = {"device": FAR, "is_cuda": True, "is_cpu": False, "data_ptr": 0}
_REFUSED = {"numpy", "__array__"}
_COPIES = {"to", "cpu", "copy_", "__setitem__"}


class FarTensor(torch.Tensor):
    """`held` is what lies there."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=FAR)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return _called(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func}: what is asked of these tensors is answered above")


class FarCalls(TorchFunctionMode):
    """Makes what is asked for on `cuda` without asking CUDA."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _called(func, args, kwargs or {})


def _mapped(change, value):
    """`value` with `change` made to what its tuples, lists and dicts hold."""
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)([_mapped(change, x) for x in value])  # what `topk` returns is a tuple as well
    if type(value) is dict:
        return {key: _mapped(change, x) for key, x in value.items()}
    return change(value)


def _all_in(values):
    found = []
    _mapped(found.append, values)
    return found


def _called(func, args, kwargs):
    name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
    far = [x for x in _all_in([args, kwargs]) if isinstance(x, FarTensor)]
    kwargs.pop("pin_memory", None)
    asked = [x for x in _all_in([args, kwargs]) if isinstance(x, torch.device)]
    if not far and not any(x.type == "cuda" for x in asked):
        return func(*args, **kwargs)
    if far and name in _TOLD:
        return _TOLD[name]
    if far and name in _REFUSED:
        raise TypeError(f"{name}: can't reach cuda:0 memory from the host")
    if far and name not in _COPIES:
        _refuse_host_tensors(name, args[:1] if name == "__getitem__" else [args, kwargs])
    to_far = asked[0].type == "cuda" if asked else name != "cpu"
    moves = bool(asked) or name == "cpu"
    mine = {id(x.held): x for x in far}
    args, kwargs = _mapped(_on_cpu, (args, kwargs))
    if (
        dtype := kwargs.pop("out_dtype", None)
    ) is not None:  # CUDA's own: 16-bit factors, sums of another type
        args = [x.to(dtype) for x in args]
    found = func(*args, **kwargs)
    if name == "copy_" and id(args[0]) not in mine:
        return found  # from there to the host

    def placed(x):
        if not isinstance(x, torch.Tensor):
            return x
        if not to_far:
            return x.clone()
        return mine[id(x)] if id(x) in mine else FarTensor(x.clone() if moves else x)

    return _mapped(placed, found)


def _refuse_host_tensors(name, values):
    for value in _all_in(values):
        if isinstance(value, torch.Tensor) and not isinstance(value, FarTensor) and value.dim():
            raise RuntimeError(f"{name}: found tensors on cuda:0 and on the cpu")


def _on_cpu(value):
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.held if isinstance(value, FarTensor) else value


@contextlib.contextmanager
def far_device(form="reference"):
    """Engines built inside think that they run on a GPU."""
    with pytest.MonkeyPatch.context() as patch, FarCalls():
        patch.setattr(build, "choose_device", lambda wanted: FAR)
        patch.setattr(build, "free_memory", lambda _device: 1 << 30)
        patch.setattr(build, "CopyLane", lambda _device: CopyLane(torch.device("cpu")))
        patch.setattr(dispatch, "_cuda_form", form)
        if form == "triton":
            interpreter = importlib.import_module("triton.runtime.interpreter")
            launch = interpreter.GridExecutor.__call__
            patch.setattr(
                interpreter.GridExecutor, "__call__", lambda *args, **named: _launch(launch, args, named)
            )
        yield


def _launch(launch, args, named):
    """A Triton kernel over what lies there, and nothing else."""
    for value in _all_in([args, named]):
        assert isinstance(value, FarTensor) or not isinstance(value, torch.Tensor), (
            "a kernel cannot reach the host"
        )
    with torch._C.DisableTorchFunction():
        launch(*_mapped(_on_cpu, args), **named)


def load_far(path):
    """The model with its weights on the stand-in."""
    with far_device():
        return build.load_model(Config(device="cuda"), path, with_front=False)
