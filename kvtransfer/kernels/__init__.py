"""Triton kernels that copy and sum KV bytes on a GPU, each with its torch twin beside it."""
