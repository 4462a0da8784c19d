"""Compiles each Triton kernel for CUDA the way its host side launches it, and runs none: no GPU is needed.

`python triton_for_cuda.py 90`: for compute capability 9.0. Without TRITON_INTERPRET. Prints a line for each kernel.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from edgekv_kernels.packed import Packed4, Packed8
from edgekv_kernels.triton import abstracts, attention, gating, kv, matmul, merging, norm, rope, selection

HEADS = ((2, 1, 32), (9, 3, 64), (32, 8, 128))  # query heads, kv heads, dimension


def compile_instead(self, *args, grid, warmup, **named):
    """In place of a launch."""
    values = dict(zip(self.arg_names, args, strict=False)) | named
    ones = {
        n for n, value in values.items() if type(value) is int and value == 1
    }  # Triton makes these constant
    chosen = {p.name for p in self.params if p.is_constexpr} | ones
    signature = {n: "constexpr" if n in chosen else mangle_type(values[n]) for n in self.arg_names}
    constants = {(self.arg_names.index(name),): values[name] for name in chosen}
    source = ASTSource(fn=self, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    sys.stdout.write(f"{self.fn.__name__} {len(made.asm['cubin'])}\n")


def attends(num_heads, num_kv_heads, dim):
    """What reads and writes leaves, for one shape of heads."""
    pool, slots = (
        torch.zeros(4, 2, num_kv_heads, 16, dim, dtype=torch.bfloat16),
        torch.arange(3, dtype=torch.int32),
    )
    q, k = torch.zeros(2, num_heads, dim), torch.zeros(2, num_kv_heads, dim)
    out, lse = torch.zeros_like(q), torch.zeros(2, num_heads)
    keys = torch.zeros(3, num_kv_heads * (6 * dim + 8), dtype=torch.uint8)
    kv.append_kv(pool, slots, 3, k, k)
    abstracts.pack_keys(pool, slots, keys)
    for turns, style in (
        (None, "split"),
        (torch.zeros(3, dim), "split"),
        (torch.zeros(3, dim), "interleaved"),
    ):
        attention.attend_leaves(q, pool, slots, 40, 0.1, out, lse, turns, style)
        attention.attend_leaves(q[:1], pool, slots, 1, 0.1, out[:1], lse[:1], turns, style)
        selection.score_leaves(q, keys, 0.1, turns, style, torch.zeros(3))
    merging.merge_(out, lse, out.clone(), lse.clone())


def multiplies():
    """Products and what stands between them."""
    x, out = torch.zeros(1, 576), torch.zeros(1, 96)
    for dtype in (torch.float16, torch.float32):
        scale = torch.zeros(96, 18, dtype=dtype)
        four = Packed4(torch.zeros(96, 288, dtype=torch.uint8), scale, scale)
        matmul.matmul4(x, four, out, accumulate=True)
        for offset in (None, scale):
            eight = Packed8(torch.zeros(96, 576, dtype=torch.int8), scale, offset)
            matmul.matmul8(x, eight, out, accumulate=False)
    matmul.matmul16(x, torch.zeros(96, 576, dtype=torch.bfloat16), out, accumulate=False)
    for dtype in (torch.float32, torch.bfloat16):
        norm.rms_norm(x, torch.zeros(576), 1e-5, torch.zeros(1, 576, dtype=dtype))
        gating.swiglu(torch.zeros(1, 192), torch.zeros(1, 96, dtype=dtype))
    for style in ("split", "interleaved"):
        rope.rope_(torch.zeros(2, 9, 64), torch.zeros(2, 32), torch.zeros(2, 32), style)


if __name__ == "__main__":
    JITFunction.run = compile_instead
    for heads in HEADS:
        attends(*heads)
    multiplies()
