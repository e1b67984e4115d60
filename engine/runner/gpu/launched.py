"""A step that is on its way on a device: what it sampled and read comes to host memory."""

# Shapes: R rows sampled, A of them with logprobs, N most likely tokens reported.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.batch import Chunk, SampledToken, SequenceId, StepReadings, StepTokens
from engine.runner.gpu.device import StepEvent
from engine.runner.prompt_rows import ReadPlan, as_readings
from engine.sampling.rows import NO_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedPart:
    """On its way: its tokens come to host memory, and an event says when they are there."""

    asking: Sequence[Chunk]
    """Those that sample, row r of chunk r."""
    event: StepEvent
    tokens_R: Tensor
    """Host memory, filled when the event has happened; so is the next."""
    reports: Tensor
    """[A, 1 + 2 N] as `engine.sampling.rows.logprobs`, of the rows that ask, in order."""
    num_top: Mapping[int, int]
    """How many of the most likely each of them wants, by row."""
    plan: ReadPlan | None
    read: Sequence[Tensor]
    """Host memory, as the tokens: what the plan's chunks read."""

    def readings(self) -> StepReadings:
        return {} if self.plan is None else as_readings(self.plan, self.read)

    def tokens(self) -> StepTokens:
        """As the contract; raises RuntimeError when the device failed."""
        self.event.wait()  # also where nothing is sampled: the KV is written then
        reports = dict(zip(self.num_top, self.reports.tolist(), strict=True))
        sampled: dict[SequenceId, Sequence[SampledToken]] = {}
        for row, (chunk, token) in enumerate(zip(self.asking, self.tokens_R.tolist(), strict=True)):
            if token != NO_TOKEN:
                sampled[chunk.sequence] = (self._reported(token, row, reports.get(row)),)
        return sampled

    def _reported(self, token: int, row: int, report: list[float] | None) -> SampledToken:
        if report is None:
            return SampledToken(token_id=token)
        most = (len(report) - 1) // 2
        ids, values = report[1 : 1 + most], report[1 + most :]
        pairs = list(zip(map(int, ids), values, strict=True))[: self.num_top[row]]
        return SampledToken(token_id=token, logprob=report[0], top=tuple(pairs))


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """All its forwards, in the order of their launches."""

    parts: Sequence[LaunchedPart]

    def tokens(self) -> StepTokens:
        """As the contract; raises RuntimeError when the device failed."""
        if len(self.parts) == 1:
            return self.parts[0].tokens()
        sampled: dict[SequenceId, Sequence[SampledToken]] = {}
        for part in self.parts:
            sampled |= part.tokens()
        return sampled

    def readings(self) -> StepReadings:
        read = [part.readings().items() for part in self.parts]
        return dict(pair for pairs in read for pair in pairs)
