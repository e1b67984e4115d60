"""One copy takes a step's numbers to the device; there they are views of one buffer.

The buffer never moves, so captured steps may read it, and the next upload comes after them in the
engine's stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from engine.ops.inputs import ForwardInputs
from engine.runner.gpu.arrays import Array, StepArrays
from engine.runner.gpu.device import Device

ALIGN_BYTES = 16
"""Kernels are compiled for pointers that are multiples of it; another would compile them anew."""
_DTYPES = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32}
_NAMES = tuple(field.name for field in fields(StepArrays))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """`StepArrays` on the device."""

    token_ids_T: Tensor
    feed_T: Tensor
    positions_T: Tensor
    slots_GT: Tensor
    starts_S1: Tensor
    ends_S: Tensor
    rows_R: Tensor
    keep_R: Tensor
    temperature_R: Tensor
    top_p_R: Tensor
    min_p_R: Tensor
    top_k_R: Tensor
    seed_R: Tensor
    position_R: Tensor
    tables_GSB: Tensor

    def inputs(self, token_ids_T: Tensor, tables_GSB: Tensor) -> ForwardInputs:
        return ForwardInputs(
            token_ids_T=token_ids_T,
            positions_T=self.positions_T,
            slots_GT=self.slots_GT,
            starts_S1=self.starts_S1,
            ends_S=self.ends_S,
            tables_GSB=tables_GSB,
            rows_R=self.rows_R,
        )


class Upload:
    """The buffer on the device."""

    def __init__(self, device: Device, *, num_bytes: int) -> None:
        self._device = device
        self._there = torch.zeros(num_bytes, dtype=torch.uint8, device=device.where)

    def send(self, step: StepArrays) -> StepTensors:
        """Launches the copy. Raises ValueError for a step larger than the buffer."""
        places, num_bytes = _places([getattr(step, name) for name in _NAMES])
        if num_bytes > len(self._there):
            raise ValueError(f"a step of {num_bytes} bytes does not fit {len(self._there)}")
        here = self._device.host_bytes(num_bytes)
        bytes_here = here.numpy()
        for name, place in zip(_NAMES, places, strict=True):
            array: Array = np.ascontiguousarray(getattr(step, name))
            bytes_here[place : place + array.nbytes] = array.reshape(-1).view(np.uint8)
        self._there[:num_bytes].copy_(here, non_blocking=True)
        return self.views(step)

    def views(self, step: StepArrays) -> StepTensors:
        """Where a step of these shapes lies."""
        arrays = [getattr(step, name) for name in _NAMES]
        places, _ = _places(arrays)
        return StepTensors(
            **{
                name: self._view(array, place)
                for name, array, place in zip(_NAMES, arrays, places, strict=True)
            }
        )

    def _view(self, array: Array, place: int) -> Tensor:
        flat = self._there[place : place + array.nbytes].view(_DTYPES[array.dtype.name])
        return flat.view(array.shape)


def send_array(device: Device, array: Array) -> Tensor:
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
    tokens = max(max_tokens, max_rows) * 8 * (3 + num_groups)
    rows = max_rows * (2 * 4 + 2 * 8 + 3 * 4 + 3 * 8)
    tables = 4 * num_groups * max_rows * max_blocks
    return tokens + rows + tables + (len(_NAMES) + 1) * ALIGN_BYTES


def _places(arrays: Sequence[Array]) -> tuple[list[int], int]:
    """Offset of each array, and the bytes of all."""
    places, end = [], 0
    for array in arrays:
        places.append(end)
        end += -(-array.nbytes // ALIGN_BYTES) * ALIGN_BYTES
    return places, end
