"""Triton kernels that move and sum KV bytes on a GPU, each with its torch twin beside it."""
