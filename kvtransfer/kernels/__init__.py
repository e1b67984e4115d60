"""Triton kernels that copy and sum KV bytes on a GPU."""
