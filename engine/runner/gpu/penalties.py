"""What masks, penalties, bias and bans do to logits, written on the device, which nobody waits for.

Penalties need no token on the host (`engine.runner.gpu.token_counts`), so a sequence that has any
is launched ahead as others are.
"""

# Shapes: R rows, A of them masked, V vocabulary, E entries, each a place among the R x V logits.

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Allowed, Chunk, SequenceId
from engine.runner.gpu.device import Device
from engine.runner.gpu.last_tokens import LastTokens
from engine.runner.gpu.token_counts import CountedRows, TokenCounts
from engine.runner.gpu.upload import upload_array
from engine.sampling.masks import TokenMasker
from engine.sampling.penalties import PenaltyRules, ScorePenaliser
from engine.sampling.sampler import MOST, biases
from protocol.messages import Sampling

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPenalties:
    """Of one step's rows, done in this order."""

    masked: Sequence[tuple[int, Allowed]]
    """Rows, each with `Chunk.allowed`, for which nobody waits before the logits are on their
    way."""
    counted: CountedRows | None
    biased_2E: Ids | None
    """Places, none twice, and the bits of a float64 to be added."""
    banned_E: Ids | None


@dataclass(frozen=True, slots=True)
class _Bias:
    rule: Sampling
    token_ids: Ids
    bits: Ids
    """Of its values, as float64."""


class Penalties:
    """Owns what lies on the device for it."""

    def __init__(
        self,
        device: Device,
        *,
        max_rows: int,
        vocab_size: int,
        eos_token_ids: Collection[int],
        last: LastTokens,
        masker: TokenMasker,
        penaliser: ScorePenaliser,
    ) -> None:
        """Of at most `max_rows` in a step; `eos_token_ids` as the engine's: those that `min_tokens`
        bans."""
        self._device, self._masker, self._penaliser = device, masker, penaliser
        self._vocab_size, self._max_rows = vocab_size, max_rows
        self._eos_token_ids = tuple(eos_token_ids)
        self._biases: OrderedDict[SequenceId, _Bias] = OrderedDict()
        """Of who came last: it takes longer to make than to send."""
        self._counts = TokenCounts(device, max_rows=max_rows, vocab_size=vocab_size, last=last)

    def plan(self, chunks: Sequence[Chunk]) -> StepPenalties:
        """Of the chunks that sample, row r of chunk r, before their step has its places among the
        last tokens. Raises ValueError for a token that the vocabulary does not hold, and as
        `TokenCounts.assign_rows`."""
        biased_2E = self._biased(chunks)
        return StepPenalties(
            masked=[(r, chunk.allowed) for r, chunk in enumerate(chunks) if chunk.allowed],
            counted=self._counts.assign_rows(chunks),
            biased_2E=biased_2E,
            banned_E=self._banned(chunks),
        )

    def forget(self, chunks: Iterable[Chunk]) -> None:
        """As `TokenCounts.forget`."""
        self._counts.forget(chunks)

    def penalise_rows(
        self, logits_RV: Tensor, step: StepPenalties
    ) -> tuple[Tensor, PenaltyRules | None]:
        """A copy with all of it done, or the same where nothing is to be; where the bans leave a
        row nothing, the row as it was allowed. Waits until the masks are filled. The rules are for
        `count_tokens`."""
        allowed_RV = self._allowed(logits_RV, step.masked) if step.masked else logits_RV
        if step.counted is None and step.biased_2E is None and step.banned_E is None:
            return allowed_RV, None
        shaped_RV = allowed_RV.clone(memory_format=torch.contiguous_format)
        rules = None
        if step.counted is not None:
            rules = self._counts.upload_rules(step.counted)
            self._penaliser(shaped_RV, self._counts.counts_PV, rules)
        if step.biased_2E is not None:
            _add_bias(shaped_RV.view(-1), upload_array(self._device, step.biased_2E))
        if step.banned_E is not None:
            banned_E = upload_array(self._device, step.banned_E)
            shaped_RV.view(-1).index_fill_(0, banned_E, -math.inf)
            left_R1 = (shaped_RV > -torch.inf).any(dim=1, keepdim=True)
            shaped_RV = torch.where(left_R1, shaped_RV, allowed_RV)
        return shaped_RV, rules

    def count_tokens(self, sampled_R: Tensor, rules: PenaltyRules | None) -> None:
        """The step's tokens are what its penalised sequences have had from now on."""
        if rules is not None:
            self._counts.count_tokens(sampled_R, rules)

    def _allowed(self, logits_RV: Tensor, masked: Sequence[tuple[int, Allowed]]) -> Tensor:
        """A copy in which ids that are not allowed have -inf."""
        masks = [allowed.words() for _, allowed in masked]
        words_AW = np.zeros((len(masks), max(map(len, masks))), np.int32)
        for words_W, mask in zip(words_AW, masks, strict=True):
            words_W[: len(mask)] = mask
        rows_A = upload_array(self._device, np.array([row for row, _ in masked], np.int64))
        allowed_RV = logits_RV.clone()
        self._masker(allowed_RV, rows_A, upload_array(self._device, words_AW))
        return allowed_RV

    def _biased(self, chunks: Sequence[Chunk]) -> Ids | None:
        found = [(r, self._bias(c)) for r, c in enumerate(chunks) if _rule(c).logit_bias]
        if not found:
            return None
        places_E = np.concatenate([r * self._vocab_size + bias.token_ids for r, bias in found])
        return np.stack((places_E, np.concatenate([bias.bits for _, bias in found])))

    def _bias(self, chunk: Chunk) -> _Bias:
        rule, size = _rule(chunk), self._vocab_size
        known = self._biases.get(chunk.sequence)
        if known is not None and known.rule is rule:
            self._biases.move_to_end(chunk.sequence)
            return known
        sums = biases(rule)
        for token in sums:
            if not 0 <= token < size:  # on a GPU it would end the process, not the request
                raise ValueError(f"logit_bias: token {token} of a vocabulary of {size}")
        bits = np.array(list(sums.values()), np.float64).view(np.int64)
        made = _Bias(rule, np.array(list(sums), np.int64), bits)
        self._biases[chunk.sequence] = made
        self._biases.move_to_end(chunk.sequence)
        if len(self._biases) > self._max_rows:
            self._biases.popitem(last=False)
        return made

    def _banned(self, chunks: Sequence[Chunk]) -> Ids | None:
        size = self._vocab_size
        places = [
            row * size + token
            for row, chunk in enumerate(chunks)
            if not _rule(chunk).may_end(chunk.num_outputs)
            for token in _rule(chunk).ending_ids(self._eos_token_ids)
            if token < size
        ]
        return np.array(places, np.int64) if places else None


def _add_bias(flat_L: Tensor, biased_2E: Tensor) -> None:
    """As the sampler: what was out stays out, what was finite stays finite."""
    at_E, bias_E = biased_2E[0], biased_2E[1].view(torch.float64).float()
    score_E = flat_L[at_E].clamp(max=MOST)
    changed_E = (score_E + bias_E).clamp(-MOST, MOST)
    flat_L[at_E] = torch.where(score_E > -torch.inf, changed_E, score_E)


def _rule(chunk: Chunk) -> Sampling:
    assert chunk.sampling is not None, "the chunk asks for no token"
    return chunk.sampling
