"""From the words of a setting to a device, and to the ops and the sampler that work on it.

None is the host itself: `engine.runner.cpu` and the C kernels serve there, without any of
`engine.runner.gpu`.
"""

import logging
from importlib import import_module
from typing import Final

import torch

from engine.ops.choose import choose_ops
from engine.ops.contract import Ops
from engine.runner.gpu.device import Device
from engine.sampling.masks import TokenMasker, mask_tokens
from engine.sampling.penalties import ScorePenaliser, penalise
from engine.sampling.rows import TokenSampler, sample_on_host
from protocol.errors import SettingsError
from protocol.process.machine import driver_cuda
from protocol.process.triton_cache import use_own_triton_cache

FIRST_DRIVERS: Final = {11: 450, 12: 525, 13: 580}
"""The first driver that runs programs built for any CUDA of that major version (NVIDIA's table of
minor version compatibility)."""
log = logging.getLogger(__name__)


def open_device(setting: str) -> Device | None:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` names; None: the host.

    Raises SettingsError for a GPU that this torch does not see.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cpu":
        return None
    if setting == "auto" and not num_gpus:
        _tell_of_an_unused_driver()
        return None
    index = int(setting.partition(":")[2] or 0)
    if index >= num_gpus:
        built = torch.version.cuda or "no CUDA"
        raise SettingsError(
            f"device: {setting!r}: torch {torch.__version__} ({built}) sees {num_gpus} GPUs here; "
            f"{remedy(built=torch.version.cuda, driver=driver_cuda())}"
        )
    from engine.runner.gpu.cuda import CudaDevice

    use_own_triton_cache()
    sum_in_float32()
    return CudaDevice(index)


def remedy(*, built: str | None, driver: tuple[int, int] | None) -> str:
    """What to do where torch, built for a CUDA or for none, does not see the GPU that is asked for
    under a driver that speaks CUDAs up to `driver`, or under none."""
    if built is None:
        return "use auto or cpu, or a torch with CUDA (the worker-cuda image)"
    if driver is None:
        return "NVIDIA has no driver here: use auto or cpu, or give this container a GPU"
    major = int(built.partition(".")[0])
    if driver[0] >= major:
        return "use auto or cpu"
    first = FIRST_DRIVERS.get(major)
    newer = f"{first} or later" if first else f"one for CUDA {major}"
    return (
        f"the driver speaks CUDA {driver[0]}.{driver[1]} at most, this torch is built for {built}: "
        f"update the driver to {newer}, or install a torch built for CUDA {driver[0]}"
    )


def _tell_of_an_unused_driver() -> None:
    """A machine with a driver was meant to compute on its GPUs."""
    driver, built = driver_cuda(), torch.version.cuda
    if driver is not None and built is not None:
        told = {"torch": torch.__version__, "remedy": remedy(built=built, driver=driver)}
        log.warning("a driver, and no GPU that torch can use: the CPU computes", extra=told)


def sum_in_float32() -> None:
    """cuBLAS cuts K of a linear with few rows into splits; by torch's default it may add them up
    in bfloat16 or float16, each partial sum rounded to 8 or 11 bits."""
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False


def ops_for(device: Device, *, dtype: torch.dtype, batch_invariant: bool = False) -> Ops:
    """The Triton kernels on a GPU, the torch twins anywhere else. `batch_invariant` as
    `engine.ops.choose.choose_ops`."""
    native = None if device.where.type == "cuda" else False
    return choose_ops(
        dtype=dtype, device=device.where, native=native, batch_invariant=batch_invariant
    )


def token_sampler_for(device: Device) -> TokenSampler:
    if device.where.type == "cuda":
        sampler: TokenSampler = import_module("engine.sampling.triton_sample").sample_tokens
        return sampler
    return sample_on_host


def token_masker_for(device: Device) -> TokenMasker:
    if device.where.type == "cuda":
        masker: TokenMasker = import_module("engine.sampling.triton_mask").mask_tokens
        return masker
    return mask_tokens


def score_penaliser_for(device: Device) -> ScorePenaliser:
    if device.where.type == "cuda":
        penaliser: ScorePenaliser = import_module("engine.sampling.triton_penalties").penalise
        return penaliser
    return penalise
