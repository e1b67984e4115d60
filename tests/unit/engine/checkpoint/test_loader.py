"""How much of a checkpoint is held at once while a model is made of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from engine.checkpoint.load import load_model
from engine.checkpoint.safetensors import Checkpoint
from engine.ops.torch_ops import TorchLinear, TorchOps
from engine.ops.triton.linears import GpuLinear
from engine.ops.triton.ops import TritonOps
from tools.make_checkpoint import Shape, make_checkpoint

WeakRef: Any = StorageWeakRef  # torch gives it no types


class Watched(Checkpoint):
    """Remembers which of the tensors that it gave away are alive, at every read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._given: list[Any] = []
        self._alive: list[set[int]] = []

    def read(
        self, name: str, *, shape: tuple[int, ...], dtype: torch.dtype, row: int | None = None
    ) -> Tensor:
        tensor = super().read(name, shape=shape, dtype=dtype, row=row)
        self._given.append(WeakRef(tensor.untyped_storage()))
        self._alive.append(self.alive())
        return tensor

    def alive(self) -> set[int]:
        return {index for index, given in enumerate(self._given) if not given.expired()}

    def peak(self) -> int:
        """Most tensors that were alive at once, those aside that the model keeps as they are."""
        kept = self.alive()
        return max(len(alive - kept) for alive in self._alive)


class Packing(TorchOps):
    """Copies every weight into a form of its own, as kernels do."""

    def linear(
        self, weight_NK: Tensor, bias_N: Tensor | None, *, added: bool = False, gated: bool = False
    ) -> TorchLinear:
        return TorchLinear(weight_NK.clone(), None if bias_N is None else bias_N.clone())


class PackingOnGpu(TritonOps):
    """Stacks the experts as the GPU's ops do; no kernel runs while a model is made."""

    def linear(
        self, weight_NK: Tensor, bias_N: Tensor | None, *, added: bool = False, gated: bool = False
    ) -> GpuLinear:
        return super().linear(
            weight_NK.clone(), None if bias_N is None else bias_N.clone(), added=added, gated=gated
        )


@pytest.mark.parametrize("ops", [Packing, PackingOnGpu], ids=["torch", "triton"])
@pytest.mark.parametrize(
    ("shape", "most"),
    [
        pytest.param(Shape(layers=3), 1, id="a part of a merged linear"),
        pytest.param(Shape(layers=3, bias=True), 2, id="a linear and its bias"),
        pytest.param(Shape(family="mixtral"), 3, id="an expert's three linears"),
        pytest.param(
            Shape(family="mixtral", expert_form="stacked"), 2, id="an expert's rows of two stacks"
        ),
        pytest.param(
            Shape(family="gpt_oss", bias=True, head_dim=16), 4, id="an expert's rows and biases"
        ),
        pytest.param(
            Shape(family="gpt_oss", head_dim=16, expert_form="mxfp4"), 2, id="blocks and scales"
        ),
    ],
)
def test_no_more_is_held_than_one_linear_or_one_expert(
    tmp_path: Path, shape: Shape, most: int, ops: type[Packing | PackingOnGpu]
) -> None:
    make_checkpoint(tmp_path, shape)
    checkpoint = Watched(tmp_path)
    made = ops(io_dtype=torch.float32)
    model = load_model(tmp_path, dtype="float32", ops=made, checkpoint=checkpoint)
    assert checkpoint.peak() == most
    assert model.config.num_layers == shape.layers
