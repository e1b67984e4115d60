"""Steps of nobody's, computed to be measured before the first request comes.

They are computed in blocks that are free, and leave them free.
"""

import logging
from collections.abc import Callable, Sequence
from operator import attrgetter

from engine.batch import Chunk, SequenceId, StepInput
from engine.kvcache.prefix_cache import PrefixCache
from engine.limits import EngineLimits
from engine.runner.contract import Runner, StepHung
from engine.speeds.step_fit import MeasuredStep
from protocol.messages import Sampling

SHORT, LONG = 16, 1024
"""Contexts, in tokens."""
SMALL_CHUNK, CHUNK, LARGE_CHUNK = 32, 128, 512
BATCH = 8
_VOCABULARY = 16
"""Of the tokens computed: every model has that many."""

log = logging.getLogger(__name__)


def calibrate(
    runner: Runner,
    cache: PrefixCache,
    *,
    limits: EngineLimits,
    within_s: float,
    clock: Callable[[], float],
) -> list[MeasuredStep]:
    """Decode steps of two batches and chunks of several sizes, each at two contexts, the cheap ones
    first and as far as about `within_s` goes; of each the quicker of two. The first one is a chunk:
    what prompts cost is known by then. Raises StepHung; fewer steps when the runner raises anything
    else."""
    layout = runner.layout
    most = min(limits.max_context_tokens, LONG + LARGE_CHUNK)
    num_rows = min(-(-most // layout.block_tokens), cache.num_spare // layout.num_groups)
    table = cache.allocate_blocks(num_rows * layout.num_groups)
    steps: list[MeasuredStep] = []
    began_s = clock()
    try:
        for batch in _batches(table, limits, num_tokens=min(most, num_rows * layout.block_tokens)):
            left_s = within_s - (clock() - began_s)
            if 2 * _expected_s(batch, steps) > left_s:
                continue
            twice = measured(runner, batch, clock), measured(runner, batch, clock)
            steps.append(min(twice, key=attrgetter("step_s")))
    except StepHung:
        raise
    except Exception:
        log.exception("calibration failed; speeds are learnt from requests alone")
    finally:
        for block in table:
            cache.let_go(block)
    return steps


def measured(runner: Runner, batch: StepInput, clock: Callable[[], float]) -> MeasuredStep:
    """Compute the batch, and wait for it."""
    began_s = clock()
    runner.launch(batch).tokens()
    return of_batch(batch, step_s=clock() - began_s)


def of_batch(batch: StepInput, *, step_s: float) -> MeasuredStep:
    num_tokens = num_decodes = num_attended = 0
    for chunk in batch:
        length = len(chunk.token_ids)
        num_tokens += length
        num_attended += length * chunk.start + length * (length + 1) // 2
        num_decodes += chunk.sampling is not None and length == 1
    return MeasuredStep(
        num_tokens=num_tokens - num_decodes,
        num_attended=num_attended,
        num_decodes=num_decodes,
        step_s=step_s,
    )


def _batches(table: list[int], limits: EngineLimits, *, num_tokens: int) -> list[StepInput]:
    """Those that `num_tokens` have room for."""
    many = min(BATCH, limits.max_running)
    large = min(LARGE_CHUNK, limits.token_budget)
    far = max(SHORT, min(LONG, num_tokens - large))
    wanted = [
        _chunk(table, min(SMALL_CHUNK, large), start=0),
        _decodes(table, 1, start=SHORT),
        _decodes(table, many, start=SHORT),
        _decodes(table, many, start=far),
        _chunk(table, min(CHUNK, large), start=far),
        _chunk(table, large, start=0),
        _chunk(table, large, start=far),
    ]
    return [batch for batch in wanted if batch[0].position <= num_tokens]


def _decodes(table: list[int], num: int, *, start: int) -> StepInput:
    greedy = Sampling(seed=0, max_tokens=1, temperature=0.0)
    return tuple(
        Chunk(
            sequence=SequenceId(f"nobody {index}"), token_ids=(index % _VOCABULARY,), start=start,
            block_table=table, sampling=greedy, prompt_ids=(), outputs=(), num_prompt=start,
        )
        for index in range(num)
    )  # fmt: skip


def _chunk(table: list[int], num_tokens: int, *, start: int) -> StepInput:
    token_ids = [index % _VOCABULARY for index in range(num_tokens)]
    return (
        Chunk(
            sequence=SequenceId("nobody"), token_ids=token_ids, start=start, block_table=table,
            sampling=None, prompt_ids=(), outputs=(), num_prompt=start + num_tokens,
        ),
    )  # fmt: skip


def _expected_s(batch: StepInput, steps: Sequence[MeasuredStep]) -> float:
    """At the cheapest seconds a token so far, and no less than the cheapest step."""
    least_s = min((s.step_s for s in steps), default=0.0)
    token_s = min((s.step_s / (s.num_tokens + s.num_decodes) for s in steps), default=0.0)
    return max(least_s, token_s * sum(len(chunk.token_ids) for chunk in batch))
