"""Triton kernels for the steps between the linears, each with its torch twin."""
