"""Triton kernels, each compared with a reference before its first use."""
