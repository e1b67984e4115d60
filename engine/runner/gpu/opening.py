"""From the words of a setting to a device, and to the ops and the sampler that work on it.

None is the host itself: `engine.runner.cpu` and the C kernels serve there, without any of
`engine.runner.gpu`.
"""

from importlib import import_module

import torch

from engine.ops.choose import choose_ops
from engine.ops.contract import Ops
from engine.runner.gpu.device import Device
from engine.sampling.masks import TokenMasker, mask_tokens
from engine.sampling.penalties import ScorePenaliser, penalise
from engine.sampling.rows import TokenSampler, sample_on_host
from protocol.errors import SettingsError


def open_device(setting: str) -> Device | None:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` names; None: the host.

    Raises SettingsError for a GPU that this torch does not see.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cpu" or (setting == "auto" and not num_gpus):
        return None
    index = int(setting.partition(":")[2] or 0)
    if index >= num_gpus:
        built = torch.version.cuda or "no CUDA"
        raise SettingsError(
            f"device: {setting!r}: torch {torch.__version__} ({built}) sees {num_gpus} GPUs here; "
            "use auto or cpu, or install a torch for this machine's driver"
        )
    from engine.runner.gpu.cuda import CudaDevice

    sum_in_float32()
    return CudaDevice(index)


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
