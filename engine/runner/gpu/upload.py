"""One copy takes a step's numbers to the device; there they are views of one buffer.

The buffer never moves, so captured steps may read it, and the next upload comes after them in the
engine's stream.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.runner.gpu.arrays import NAMES, Array, StepArrays, StepFields, StepTensors, most_bytes
from engine.runner.gpu.device import Device

ALIGN_BYTES = 16
"""Kernels are compiled for pointers that are multiples of it; another would compile them anew."""
_DTYPES = {name: getattr(torch, name) for name in ("int64", "int32", "float32", "uint8")}


class Upload:
    """The buffer on the device."""

    def __init__(self, device: Device, *, num_bytes: int) -> None:
        self._device = device
        self._there = torch.zeros(num_bytes, dtype=torch.uint8, device=device.where)

    def upload_step(self, step: StepArrays) -> StepTensors:
        """Launches the copy. Raises ValueError for a step larger than the buffer."""
        named = step.values()
        arrays = list(named.values())
        places, num_bytes = _places(arrays)
        if num_bytes > len(self._there):
            raise ValueError(f"a step of {num_bytes} bytes does not fit {len(self._there)}")
        here = self._device.host_bytes(num_bytes)
        bytes_here = here.numpy()
        for array, place in zip(arrays, places, strict=True):
            packed = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            bytes_here[place : place + array.nbytes] = packed
        self._there[:num_bytes].copy_(here, non_blocking=True)
        views = map(self._view, arrays, places)
        return StepFields(**dict(zip(named, views, strict=True)), work=step.work)

    def _view(self, array: Array, place: int) -> Tensor:
        flat = self._there[place : place + array.nbytes].view(_DTYPES[array.dtype.name])
        return flat.view(array.shape)


def upload_array(device: Device, array: Array) -> Tensor:
    """A tensor of its own on the device, for what few steps need."""
    array = np.ascontiguousarray(array)
    here = device.host_bytes(array.nbytes)
    here.numpy()[:] = array.reshape(-1).view(np.uint8)
    there = here.to(device.where, non_blocking=True)
    return there.view(_DTYPES[array.dtype.name]).view(array.shape)


def fetch(device: Device, there: Tensor) -> Tensor:
    """A copy on the host that is there once an event recorded after this call has happened."""
    here = device.host_bytes(there.nbytes).view(there.dtype).view(there.shape)
    return here.copy_(there, non_blocking=True)


def upload_bytes(*, max_tokens: int, max_rows: int, max_blocks: int, num_groups: int) -> int:
    """Room for every step of so many tokens and sequences, with tables so wide."""
    packed_bytes = most_bytes(
        max_tokens=max_tokens, max_rows=max_rows, max_blocks=max_blocks, num_groups=num_groups
    )
    return packed_bytes + len(NAMES) * ALIGN_BYTES


def _places(arrays: Sequence[Array]) -> tuple[list[int], int]:
    """Offset of each array, and the bytes of all."""
    places, end = [], 0
    for array in arrays:
        places.append(end)
        end += -(-array.nbytes // ALIGN_BYTES) * ALIGN_BYTES
    return places, end
