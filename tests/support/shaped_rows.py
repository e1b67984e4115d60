"""Rows of logits after masks, penalties, bias and bans, as a device's runner makes them."""

# Shapes: R rows, V vocabulary.

from collections.abc import Collection, Sequence

import msgspec
from support.host_device import HostDevice
from torch import Tensor

from engine.batch import Chunk, SequenceId
from engine.runner.gpu.last_tokens import LastTokens
from engine.runner.gpu.penalties import Penalties
from engine.sampling.masks import mask_tokens
from engine.sampling.penalties import penalise


def penalties_for(
    vocab_size: int, *, max_rows: int, eos_token_ids: Collection[int] = ()
) -> Penalties:
    device = HostDevice()
    return Penalties(
        device, max_rows=max_rows, vocab_size=vocab_size, eos_token_ids=eos_token_ids,
        last=LastTokens(device, max_rows=max_rows), masker=mask_tokens, penaliser=penalise,
    )  # fmt: skip


def shaped_on_device(
    logits_RV: Tensor, chunks: Sequence[Chunk], *, eos_token_ids: Collection[int] = ()
) -> Tensor:
    """Of sequences that have nothing in common, whatever the chunks name them."""
    penalties = penalties_for(logits_RV.shape[1], max_rows=len(chunks), eos_token_ids=eos_token_ids)
    own = [
        msgspec.structs.replace(chunk, sequence=SequenceId(f"row {row}"))
        for row, chunk in enumerate(chunks)
    ]
    shaped_RV, _ = penalties.penalise_rows(logits_RV, penalties.plan(own))
    return shaped_RV
