"""Triton kernels for the steps between the linears, each with its torch twin.

`engine.ops.triton.ops` calls them as an `engine.ops.contract.Ops`; `engine.sampling.triton_sample`
chooses tokens. Nothing here waits for the device or reads from it, so that a CUDA graph can hold
every launch. Rows that only pad a batch are harmless: slot -1 stores nothing, a sequence without
tokens computes nothing. Counts that change with every batch are not specialised on: no request
waits for a compiler.
"""
