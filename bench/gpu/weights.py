"""Random weights made on the device: a model of 16 GB without a byte on disk.

Stands for a checkpoint's tensors in `engine.checkpoint.load.load_model`.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu.shapes import BYTES
from engine.checkpoint.safetensors import Checkpoint, StoredTensor
from engine.checkpoint.tensor_names import Naming, tensor_specs
from engine.models.config import ModelConfig
from tools.make_checkpoint import Shape

SPREAD = 0.02
"""As transformers initialises: logits stay small, and nothing overflows."""


class RandomCheckpoint(Checkpoint):
    def __init__(self, shape: Shape, config: ModelConfig, device: torch.device) -> None:
        self.path = Path("random")
        self._device = device
        self._generator = torch.Generator(device).manual_seed(shape.seed)
        self.tensors: Mapping[str, StoredTensor] = {
            name: StoredTensor(
                file=self.path, dtype="BF16", shape=spec.shape, offset=0,
                num_bytes=prod(spec.shape) * BYTES[shape.dtype],
            )
            for name, spec in tensor_specs(config, Naming()).items()
        }  # fmt: skip

    def stored(self, name: str, *, shape: tuple[int, ...], quantised: bool = False) -> StoredTensor:
        return self.tensors[name]

    def read(
        self, name: str, *, shape: tuple[int, ...], dtype: torch.dtype, row: int | None = None
    ) -> Tensor:
        assert row is None, "dense shapes only"
        if len(shape) == 1:  # a norm
            return torch.ones(shape, dtype=dtype, device=self._device)
        tensor = torch.empty(shape, dtype=dtype, device=self._device)
        return tensor.normal_(std=SPREAD, generator=self._generator)

    def revision(self, config_text: bytes) -> str:
        return "random"
