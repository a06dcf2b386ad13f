"""Triton kernels; imported only where CUDA tensors are computed, or by tests, which also run them interpreted."""
