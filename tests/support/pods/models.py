"""Other models than the shipped one, in a folder that pods mount."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.pods.image import ROOT

from tools.checkpoint_shape import Shape
from tools.make_checkpoint import make_checkpoint


def other_weights(path: Path) -> None:
    """The shipped model with noise on every number."""
    shutil.copytree(ROOT / "models" / "tiny", path)
    found = load_file(path / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, tensor in found.items():
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        found[name] = tensor + 0.2 * noise
    save_file(found, path / "model.safetensors", metadata={"format": "pt"})
    _open_to_all(path)


def other_tokenizer(path: Path) -> None:
    """Random weights, tokens and template of its own."""
    make_checkpoint(path, Shape(hidden=128, layers=2, mlp=256, vocab=1024, context=2048))
    _open_to_all(path)


def _open_to_all(folder: Path) -> None:
    """Pods are nobody of this machine."""
    for path in folder.iterdir():
        path.chmod(0o644)
