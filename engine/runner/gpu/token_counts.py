"""Which tokens each penalised sequence has had, counted on the device: a step launched ahead is
penalised by tokens that the host has not read.

A sequence has a row from its first token on, and keeps it while as many others as there are rows
have not come since; whoever comes without one, or with fewer or more tokens than its row counts (a
step was undone, it went on elsewhere), has its row written anew from what the host knows and from
what launched steps sample.
"""

# Shapes: P rows of counts, V vocabulary, R rows sampled, A of them penalised, F rows written anew,
# E tokens of their prompts, O of their outputs, N pending ones.

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Chunk, SequenceId
from engine.runner.gpu.device import Device
from engine.runner.gpu.last_tokens import LastTokens
from engine.runner.gpu.upload import upload_array
from engine.sampling.penalties import IN_PROMPT, PenaltyRules
from engine.sampling.sampler import as_float32
from protocol.messages import Sampling

Ids = NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class _Row:
    """`outputs` and `prompt_ids` are its sequence's own: another one that has its id has others."""

    place: int
    outputs: Sequence[int]
    prompt_ids: Sequence[int]
    num_counted: int
    """Outputs, once every launched step is over."""

    def fits(self, chunk: Chunk) -> bool:
        same = self.outputs is chunk.outputs and self.prompt_ids is chunk.prompt_ids
        return same and self.num_counted == chunk.num_outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshRow:
    """To be written anew."""

    place: int
    prompt_ids: Ids
    outputs: Ids
    pending: Sequence[int]
    """Places among the last tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRows:
    """The penalised rows of a step."""

    rows: Sequence[int]
    places: Sequence[int]
    rules: Sequence[Sampling]
    fresh: Sequence[FreshRow]


def is_penalised(rule: Sampling) -> bool:
    penalties = rule.frequency_penalty, rule.presence_penalty
    return rule.repetition_penalty != 1 or any(penalties)


class TokenCounts:
    """int32 [P, V]: 4 bytes for each token of the vocabulary and sequence that may run."""

    def __init__(self, device: Device, *, max_rows: int, vocab_size: int, last: LastTokens) -> None:
        """`last` has the tokens that nobody has read."""
        self._device, self._last = device, last
        self._rows: OrderedDict[SequenceId, _Row] = OrderedDict()
        self._free = list(range(max_rows))
        self._vocab_size = vocab_size
        self.counts_PV = torch.zeros(max_rows, vocab_size, dtype=torch.int32, device=device.where)

    def assign_rows(self, chunks: Sequence[Chunk]) -> CountedRows | None:
        """Of the chunks that sample, at most `max_rows` in a step, each of which counts one more
        token from now on; None: none is penalised. Before the step has its places among the last
        tokens. Raises ValueError as `LastTokens.pending_places`."""
        rows = [row for row, chunk in enumerate(chunks) if is_penalised(_rule(chunk))]
        if not rows:
            return None
        penalised = [chunks[row] for row in rows]
        for chunk in penalised:
            if chunk.sequence in self._rows:
                self._rows.move_to_end(chunk.sequence)
        pending = [self._last.pending_places(chunk) for chunk in penalised]
        given = [self._given(*pair) for pair in zip(penalised, pending, strict=True)]
        return CountedRows(
            rows=rows, places=[place for place, _ in given],
            rules=[_rule(chunk) for chunk in penalised],
            fresh=[fresh for _, fresh in given if fresh is not None],
        )  # fmt: skip

    def forget(self, chunks: Iterable[Chunk]) -> None:
        """Their step was not launched: nobody knows what their rows hold."""
        for chunk in chunks:
            if (row := self._rows.pop(chunk.sequence, None)) is not None:
                self._free.append(row.place)

    def upload_rules(self, counted: CountedRows) -> PenaltyRules:
        """Also writes the fresh rows."""
        self._write(counted.fresh)
        numbers_5A = np.empty((5, len(counted.rows)), np.int64)
        numbers_5A[0], numbers_5A[1] = counted.rows, counted.places
        values_3A = numbers_5A[2:].view(np.float64)
        values_3A[0] = [as_float32(rule.repetition_penalty) for rule in counted.rules]
        values_3A[1] = [rule.frequency_penalty for rule in counted.rules]
        values_3A[2] = [rule.presence_penalty for rule in counted.rules]
        there_5A = upload_array(self._device, numbers_5A)
        there_3A = there_5A[2:].view(torch.float64)
        return PenaltyRules(
            rows_A=there_5A[0], places_A=there_5A[1], repetition_A=there_3A[0].float(),
            frequency_A=there_3A[1], presence_A=there_3A[2],
        )  # fmt: skip

    def count_tokens(self, sampled_R: Tensor, rules: PenaltyRules) -> None:
        """A row without a token counts token 0: its sequence ends when the host reads that."""
        tokens_A = sampled_R[rules.rows_A].clamp(min=0)
        self._add(rules.places_A * self._vocab_size + tokens_A)

    def _given(self, chunk: Chunk, pending: Sequence[int]) -> tuple[int, FreshRow | None]:
        """Its row's place, and the row where it is to be written anew."""
        row = self._rows.get(chunk.sequence)
        if row is not None and row.fits(chunk):
            row.num_counted += 1
            return row.place, None
        place = self._free_place() if row is None else row.place
        self._rows[chunk.sequence] = _Row(
            place=place, outputs=chunk.outputs, prompt_ids=chunk.prompt_ids,
            num_counted=chunk.num_outputs + 1,
        )  # fmt: skip
        self._rows.move_to_end(chunk.sequence)
        return place, FreshRow(
            place=place, prompt_ids=np.array(chunk.prompt_ids, np.int64),
            outputs=np.array(chunk.outputs, np.int64), pending=pending,
        )  # fmt: skip

    def _free_place(self) -> int:
        """Of who has not come for longest, if all are taken: never one of this step."""
        if self._free:
            return self._free.pop()
        _, row = self._rows.popitem(last=False)
        return row.place

    def _write(self, fresh: Sequence[FreshRow]) -> None:
        if not fresh:
            return
        size, device = self._vocab_size, self._device
        places_F = upload_array(device, np.array([row.place for row in fresh], np.int64))
        self.counts_PV.index_fill_(0, places_F, 0)
        seen = np.concatenate([row.place * size + row.prompt_ids for row in fresh])
        if len(seen):
            self.counts_PV.view(-1).index_fill_(0, upload_array(device, seen), IN_PROMPT)
        said = np.concatenate([row.place * size + row.outputs for row in fresh])
        if len(said):
            self._add(upload_array(device, said))
        unread = [(row.place * size, place) for row in fresh for place in row.pending]
        if unread:
            begin_N, place_N = upload_array(device, np.array(unread, np.int64).T)
            self._add(begin_N + self._last.tokens_at(place_N))

    def _add(self, at_O: Tensor) -> None:
        """One more of each, however often it is named."""
        ones_O = torch.ones(len(at_O), dtype=torch.int32, device=at_O.device)
        self.counts_PV.view(-1).index_add_(0, at_O, ones_O)


def _rule(chunk: Chunk) -> Sampling:
    assert chunk.sampling is not None, "the chunk asks for no token"
    return chunk.sampling
