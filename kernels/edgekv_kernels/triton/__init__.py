"""The CUDA twins, written in Triton. Only this package imports triton; only `@triton.jit` and its launches here.

Made for few rows (decode): big products unpack the weights and use torch. With TRITON_INTERPRET=1 they run
on CPU tensors, slowly, which is how they are tested without a GPU.
"""
