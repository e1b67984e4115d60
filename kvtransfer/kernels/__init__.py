"""Triton kernels that move and sum KV bytes on a GPU, each with its torch twin beside it.

The only part of `kvtransfer`, with the CUDA driver, that knows torch; nothing else imports it.
"""
