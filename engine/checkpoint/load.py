"""A folder in Hugging Face format to a model that computes."""

from dataclasses import replace
from pathlib import Path

import torch

from engine.checkpoint.loader import Loader, Progress
from engine.checkpoint.quantised import explained
from engine.checkpoint.safetensors import Checkpoint
from engine.models.config import ModelConfig, read_config
from engine.models.model import DTYPES, Dtype, Model
from engine.ops.choose import choose_ops
from engine.ops.contract import Ops
from protocol.errors import CheckpointError

MAX_HEAD_DIM = 512


def load_model(
    path: Path,
    *,
    dtype: Dtype,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    native: bool | None = None,
    ops: Ops | None = None,
    checkpoint: Checkpoint | None = None,
    config: ModelConfig | None = None,
) -> Model:
    """The model in directory `path`, weights in `dtype` on `device`.

    `progress` is called with (bytes done, bytes in all) after every tensor; `native` as in
    `engine.ops.choose.choose_ops`, which chooses where no `ops` are given; `checkpoint` stands for
    the directory's tensors, `config` for what its JSON files say. Raises CheckpointError naming the
    file and the key or tensor.
    """
    config = config or read_config(path)
    if config.head_dim > MAX_HEAD_DIM:
        raise CheckpointError(f"{path / 'config.json'}: head_dim above {MAX_HEAD_DIM}")
    place = torch.device(device)
    ops = ops or choose_ops(dtype=DTYPES[dtype], device=place, native=native)
    try:
        checkpoint = checkpoint or Checkpoint(path)
        loader = Loader(
            config, checkpoint, ops, dtype=DTYPES[dtype], device=place, progress=progress
        )
    except CheckpointError as error:
        raise explained(error, path, checkpoint.tensors if checkpoint else ()) from error
    parts = loader.parts()
    revision = checkpoint.revision(config.identity)  # of the bytes that the parts were made of
    return Model(replace(config, revision=revision), ops, parts)
