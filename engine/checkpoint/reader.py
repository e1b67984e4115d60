"""Which of a checkpoint's tensors a model takes, and their reading, one at a time.

Each goes to the device as it is read; nothing is kept on the host.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.checkpoint.safetensors import Checkpoint
from engine.checkpoint.shard import Shard
from engine.checkpoint.tensor_names import (
    Naming,
    all_meanings,
    find_naming,
    find_places,
    is_not_text,
    tensor_specs,
)
from engine.models.config import ModelConfig

Progress = Callable[[int, int], None]
log = logging.getLogger(__name__)
_NO_WEIGHTS = ("rotary_emb.inv_freq", "position_ids")
"""Buffers that older checkpoints have kept."""


class TensorReader:
    """Reads by the names that the model wants, in `naming`, and tells of what it does not want."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        progress: Progress | None,
        shard: Shard,
    ) -> None:
        """Each tensor's `shard` is read as its `Cut` says. Raises CheckpointError for a tensor
        that is missing or misshapen."""
        self._config, self._checkpoint, self._shard = config, checkpoint, shard
        self._device, self._progress = device, progress
        self.naming = find_naming(config, all_meanings(checkpoint.tensors))
        self._specs = tensor_specs(config, self.naming)
        self._places = self._find_places()
        self._done_bytes, self._total_bytes = 0, self._stored_bytes()
        self._tell_unused([name for name in self._places if name not in self._specs])

    def read(self, name: str, dtype: torch.dtype, row: int | None = None) -> Tensor:
        """As `engine.checkpoint.parameters.Read`."""
        spec = self._specs[name]
        stored = self._places[name]
        whole = self._checkpoint.read(stored, shape=spec.shape, dtype=dtype, row=row)
        num_bytes = self._checkpoint.tensors[stored].num_bytes
        self._done_bytes += num_bytes if row is None else num_bytes // spec.shape[0]
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)
        return spec.cut.part_of(whole, self._shard).to(self._device)

    def read_head(self, embedding_VK: Tensor) -> Tensor:
        """The head's weights in the embedding's dtype. As transformers: one that should be tied and
        differs from the embedding is not."""
        name, embedding = self.naming.head, self.naming.embedding
        if name not in self._specs:
            return embedding_VK
        head_VK = self.read(name, embedding_VK.dtype)
        if not self._config.tied_embeddings:
            return head_VK
        if self._checkpoint.same_bytes(self._places[name], self._places[embedding]):
            return embedding_VK
        why = f"{name} and {embedding} are both stored, and differ"
        remedy = "set tie_word_embeddings to false in config.json"
        log.warning("embeddings not tied", extra={"why": why, "remedy": remedy})
        return head_VK

    def _find_places(self) -> dict[str, str]:
        """Where each tensor is stored; a head that should be tied is read if it is, and stands for
        an embedding that is not."""
        embedding, head = self.naming.embedding, self.naming.head
        places = find_places(self._checkpoint.tensors, {*self._specs, head})
        if self._config.tied_embeddings and head in places:
            if embedding in places:
                self._specs[head] = self._specs[embedding]
            else:
                places[embedding] = places.pop(head)
        return places

    def _stored_bytes(self) -> int:
        return sum(
            self._checkpoint.stored(
                self._places.get(name, name), shape=spec.shape, quantised=spec.quantised
            ).num_bytes
            for name, spec in self._specs.items()
        )

    def _tell_unused(self, names: Sequence[str]) -> None:
        """As transformers does, which ignores them too."""
        text_only = self.naming.body == Naming().body and not self._config.wrapped
        unused = [
            name
            for name in names
            if not name.endswith(_NO_WEIGHTS) and (text_only or not is_not_text(name))
        ]
        if unused:
            shown = f"{', '.join(unused[:6])}{', ...' if unused[6:] else ''}"
            why = "config.json has no place for them"
            remedy = "none, if that is as it should be"
            told = {"count": len(unused), "tensors": shown, "why": why, "remedy": remedy}
            log.warning("tensors ignored", extra=told)
