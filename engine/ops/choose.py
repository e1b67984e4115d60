"""Which ops compute here: C kernels for the processor, or torch."""

import importlib
import logging

import torch

from engine.ops.contract import Ops
from engine.ops.torch_ops import TorchOps
from protocol.process.kernels.c_kernels import NoKernels

log = logging.getLogger(__name__)


def choose_ops(
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
    native: bool | None = None,
    batch_invariant: bool = False,
) -> Ops:
    """The fastest ops for weights of `dtype` on `device`, by default this machine's CPU.
    `native` False asks for the torch twins; True for the kernels, raising NoKernels where there are
    none. `batch_invariant`: those whose rows do not depend on the batch; NoKernels too where
    torch's would serve."""
    if native is False:
        if batch_invariant:
            raise NoKernels("rows of torch's linears depend on the batch")
        return TorchOps(io_dtype=dtype)
    if device is not None and device.type == "cuda":
        # By name: a machine without a GPU may have no Triton, and need not.
        kernels = importlib.import_module("engine.ops.triton.ops")
        early = importlib.import_module("engine.ops.triton.launch").begins_early(device)
        ops: Ops = kernels.TritonOps(io_dtype=dtype, batch_invariant=batch_invariant, early=early)
        return ops
    if device is not None and device.type != "cpu":
        return choose_ops(dtype=dtype, native=False, batch_invariant=batch_invariant)
    required = native is True or batch_invariant
    return _cpu_ops(dtype, required=required, onednn=not batch_invariant)


def _cpu_ops(dtype: torch.dtype, *, required: bool, onednn: bool) -> Ops:
    """`onednn` False: not even where it is the faster."""
    from engine.ops.cpu.build import load
    from engine.ops.cpu.linears import onednn_works
    from engine.ops.cpu.ops import NativeOps

    try:
        if dtype == torch.float16:
            raise NoKernels("those for CPUs have no float16")
        kernels = load()
    except NoKernels as error:
        if required:
            raise
        log.warning("no C kernels, torch serves instead", extra={"why": str(error)})
        return TorchOps(io_dtype=dtype)
    narrow = dtype == torch.bfloat16
    onednn = onednn and narrow and has_amx() and onednn_works(dtype)
    io_dtype = torch.bfloat16 if onednn or (narrow and kernels.baton_dot()) else torch.float32
    return NativeOps(kernels, io_dtype=io_dtype, kv_dtype=dtype, onednn=onednn)


def has_amx() -> bool:
    """Whether oneDNN multiplies bfloat16 in tiles here. It accepts bfloat16 on every AVX512
    machine, but widens it in slow steps where there is no instruction, and where there is
    AVX512-BF16 our own kernel is as fast and keeps a row's bits (docs/lab.md)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_amx_tile_supported())
