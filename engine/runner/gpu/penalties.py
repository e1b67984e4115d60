"""What masks, penalties, bias and bans do to logits, as a few indexed writes on the device."""

# Shapes: R rows, A of them masked, V vocabulary, E entries, each one (row, token id) of one step of
# the order.

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batch import Allowed, Chunk
from engine.runner.gpu.device import Device
from engine.runner.gpu.upload import upload_array
from engine.sampling.masks import TokenMasker, mask_tokens
from engine.sampling.sampler import MOST, as_float32, biases
from protocol.messages import Sampling

Entry = tuple[int, int, float]
"""Row, token id, a float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """In this order; none names a (row, token id) twice."""

    masked: list[tuple[int, Allowed]]
    """Rows, each with `Chunk.allowed`, for which nobody waits before the logits are on their
    way."""
    repeated: list[Entry]
    """Positive scores are divided, negative ones multiplied."""
    lowered: list[Entry]
    biased: list[Entry]
    banned: list[Entry]

    @property
    def shapes(self) -> bool:
        """Whether it does more than mask."""
        return bool(self.repeated or self.lowered or self.biased or self.banned)


def penalties_of(
    chunks: Sequence[Chunk], *, eos_token_ids: Collection[int], vocab_size: int
) -> Penalties:
    """Of the chunks that sample, row r of chunk r. Raises ValueError for a token that the
    vocabulary does not hold."""
    found = Penalties(masked=[], repeated=[], lowered=[], biased=[], banned=[])
    for row, chunk in enumerate(chunks):
        rule = chunk.sampling
        assert rule is not None, "the chunk asks for no token"
        if chunk.allowed is not None:
            found.masked.append((row, chunk.allowed))
        if rule.repetition_penalty != 1:
            seen = {*chunk.prompt_ids, *chunk.outputs}
            penalty = as_float32(rule.repetition_penalty)
            found.repeated.extend((row, token, penalty) for token in seen)
        if chunk.outputs and (rule.frequency_penalty != 0 or rule.presence_penalty != 0):
            found.lowered.extend((row, token, malus) for token, malus in _malus(chunk, rule))
        for token, bias in biases(rule).items():
            if not 0 <= token < vocab_size:  # on a GPU it would end the process, not the request
                raise ValueError(f"logit_bias: token {token} of a vocabulary of {vocab_size}")
            found.biased.append((row, token, bias))
        if not rule.may_end(chunk.num_outputs):
            enders = rule.ending_ids(eos_token_ids)
            found.banned.extend((row, token, -math.inf) for token in enders if token < vocab_size)
    return found


def penalised(
    logits_RV: Tensor, penalties: Penalties, device: Device, *, masker: TokenMasker = mask_tokens
) -> Tensor:
    """A copy with all of it done; where the bans leave a row nothing, the row as it was allowed.
    Waits until the masks are filled."""
    if penalties.masked:
        logits_RV = _allowed(logits_RV, penalties.masked, device, masker)
    if not penalties.shapes:
        return logits_RV
    shaped_RV = logits_RV.clone()
    if penalties.repeated:
        at, factor_E = _sent(penalties.repeated, device)
        score_E = shaped_RV[at].clamp(max=MOST)
        shaped_RV[at] = _changed(
            score_E, torch.where(score_E > 0, score_E / factor_E, score_E * factor_E)
        )
    if penalties.lowered:
        at, malus_E = _sent(penalties.lowered, device)
        score_E = shaped_RV[at].clamp(max=MOST)
        shaped_RV[at] = _changed(score_E, score_E - malus_E)
    if penalties.biased:
        at, bias_E = _sent(penalties.biased, device)
        score_E = shaped_RV[at].clamp(max=MOST)
        shaped_RV[at] = _changed(score_E, score_E + bias_E)
    if penalties.banned:
        at, nothing_E = _sent(penalties.banned, device)
        shaped_RV[at] = nothing_E  # a plain -inf would be copied from the host, with a wait
        left_R1 = (shaped_RV > -torch.inf).any(dim=1, keepdim=True)
        shaped_RV = torch.where(left_R1, shaped_RV, logits_RV)
    return shaped_RV


def _changed(score_E: Tensor, changed_E: Tensor) -> Tensor:
    """As the sampler's: what was out stays out, what was finite stays finite."""
    return torch.where(score_E > -torch.inf, changed_E.clamp(-MOST, MOST), score_E)


def _allowed(
    logits_RV: Tensor, masked: list[tuple[int, Allowed]], device: Device, masker: TokenMasker
) -> Tensor:
    """A copy in which ids that are not allowed have -inf."""
    masks = [allowed.words() for _, allowed in masked]
    words_AW = np.zeros((len(masks), max(map(len, masks))), np.int32)
    for words_W, mask in zip(words_AW, masks, strict=True):
        words_W[: len(mask)] = mask
    rows_A = upload_array(device, np.array([row for row, _ in masked], np.int64))
    allowed_RV = logits_RV.clone()
    masker(allowed_RV, rows_A, upload_array(device, words_AW))
    return allowed_RV


def _malus(chunk: Chunk, rule: Sampling) -> Iterable[tuple[int, float]]:
    outputs = np.asarray(chunk.outputs, dtype=np.int64)
    for token, count in zip(*np.unique(outputs, return_counts=True), strict=True):
        malus = rule.frequency_penalty * int(count) + rule.presence_penalty
        yield int(token), as_float32(malus)


def _sent(entries: list[Entry], device: Device) -> tuple[tuple[Tensor, Tensor], Tensor]:
    rows, tokens, values = zip(*entries, strict=True)
    places_2E = upload_array(device, np.array([rows, tokens], np.int64))
    return (places_2E[0], places_2E[1]), upload_array(device, np.array(values, np.float32))
