"""A step on its way: its tokens come to host memory, and an event says when they are there.

Made by `engine.runner.gpu.runner`, read by `engine.loop`.
"""

# Shapes: R rows sampled, A of them with logprobs, N most likely tokens reported at most.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.batch import Chunk, SampledToken, SequenceId, StepTokens
from engine.runner.gpu.device import Event
from engine.sampling.rows import NO_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedStep:
    """Implements `engine.runner.contract.Launched`."""

    asking: Sequence[Chunk]
    """Those that sample, row r of chunk r."""
    event: Event
    tokens_R: Tensor
    """Host memory, filled when the event has happened; so is the next."""
    reports: Tensor
    """[A, 1 + 2 N] as `engine.sampling.logprobs.logprobs`, of the rows that ask, in order."""
    num_top: Mapping[int, int]
    """How many of the most likely each of them wants, by row."""

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
