"""The requests of the engine benchmark, and what a run of them says.

Used by `bench.engine` and its sides. A side runs jobs and returns when each token came; all
figures are made of those times, so they mean the same for everybody.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

CONTEXT = 512
DECODE_STEPS = 24
MAX_RUNNING = 32
TOKEN_BUDGET = 1024
BLOCK_TOKENS = 16
NUM_BLOCKS = 2400
"""Of 16 tokens: 32 sequences of 512 + 128 and room to spare."""
RUN_LIMIT_S = 300.0
"""Of one run of a side: the slowest run of a peer on two quiet cores takes a minute."""
FIRST_ID, VOCABULARY = 300, 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    prompt: list[int]
    num_tokens: int
    """Exactly so many are generated, greedily; nothing ends a text early."""


class TooSlow(Exception):
    """A side did not end a run within RUN_LIMIT_S. It is of no use any more: close it."""


Times = list[float]
"""Seconds from the start of the run to each token of one job."""


class Side(Protocol):
    name: str
    version: str

    def run(self, jobs: Sequence[Job]) -> list[Times]:
        """All jobs at once, at most MAX_RUNNING of them running. Raises TooSlow."""
        ...

    def close(self) -> None: ...


class Prompts:
    """Random tokens, never the same twice: no prefix cache helps."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def prompt(self, num_tokens: int) -> list[int]:
        return [self._random.randrange(FIRST_ID, VOCABULARY) for _ in range(num_tokens)]

    def between(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


def prefill_tokens_per_s(side: Side, prompts: Prompts, *, num_tokens: int = CONTEXT) -> float:
    ((first,),) = side.run([Job(prompt=prompts.prompt(num_tokens), num_tokens=1)])
    return num_tokens / first


def decode_tokens_per_s(
    side: Side, prompts: Prompts, *, batch: int, context: int = CONTEXT
) -> float:
    """Batch over the median step, from the step on in which every job runs."""
    # Those that start early must outlast the prefills.
    num_tokens = DECODE_STEPS + 1 + 2 * batch * context // CONTEXT
    jobs = [Job(prompt=prompts.prompt(context), num_tokens=num_tokens) for _ in range(batch)]
    times = side.run(jobs)
    last = max(times, key=lambda each: each[0])[: DECODE_STEPS + 1]
    return batch / median(after - before for before, after in itertools.pairwise(last))


def mixed_tokens_per_s(side: Side, prompts: Prompts, *, num_jobs: int) -> float:
    """Output tokens over the whole run; prompts of 64-512, outputs of 16-128."""
    jobs = [
        Job(prompt=prompts.prompt(prompts.between(64, 512)), num_tokens=prompts.between(16, 128))
        for _ in range(num_jobs)
    ]
    times = side.run(jobs)
    assert [len(each) for each in times] == [job.num_tokens for job in jobs]
    return sum(job.num_tokens for job in jobs) / max(each[-1] for each in times)
