"""Whether a step of decodes and a prompt's chunk is one forward, or the captured decodes and the
chunk beside them: measured on the device before the first request, for it depends on both.

Apart, every kernel of the decodes costs the host one launch and runs as it does without a prompt;
but all weights are read twice, so that a GPU which the host keeps busy is slower at it.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.batch import Chunk, SequenceId
from engine.limits import EngineLimits
from engine.runner.gpu.runner import DeviceRunner
from protocol.messages import Sampling

log = logging.getLogger(__name__)

NUM_DECODES, CHUNK_TOKENS = 32, 512
"""Of the step that is measured."""
TIMES = 3
"""The quickest counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedTimes:
    """Seconds of the same step, of two launched one behind the other."""

    together_s: float
    apart_s: float

    @property
    def runs_apart(self) -> bool:
        """Equal ones too: decodes then do not depend on whether there is a prompt."""
        return self.apart_s <= self.together_s


def choose_mixed(
    runner: DeviceRunner, limits: EngineLimits, *, clock: Callable[[], float] = time.perf_counter
) -> MixedTimes | None:
    """Has the runner compute mixed steps the quicker way; None: it has captured none, or the limits
    leave no room for one. Writes into the pool's first blocks."""
    step = mixed_step(runner, limits)
    if not runner.captured_sizes or step is None:
        return None
    taken_s = {}
    for apart in (False, True):
        runner.runs_apart = apart
        runner.launch(step).tokens()  # compiles what it needs
        taken_s[apart] = min(_measured_s(runner, step, clock) for _ in range(TIMES))
    times = MixedTimes(together_s=taken_s[False], apart_s=taken_s[True])
    runner.runs_apart = times.runs_apart
    told = {"apart": times.runs_apart, "together_s": times.together_s, "apart_s": times.apart_s}
    log.info("steps of decodes and prompts measured", extra=told)
    return times


def mixed_step(runner: DeviceRunner, limits: EngineLimits) -> list[Chunk] | None:
    """Half of them decodes at most; None: there is no room for a chunk."""
    layout = runner.layout
    room = runner.num_blocks // layout.num_groups * layout.block_tokens
    num_decodes = min(NUM_DECODES, max(1, limits.max_running // 2))
    num_tokens = min(CHUNK_TOKENS, limits.token_budget - num_decodes, limits.max_context_tokens)
    if limits.max_running < 2 or min(num_tokens, room) < 2:
        return None
    prompt = [0] * min(num_tokens, room)
    table = range(layout.num_blocks(len(prompt)))
    greedy = Sampling(seed=0, max_tokens=1, temperature=0.0)
    decodes = [_chunk(f"decode {n}", [0], table, greedy) for n in range(num_decodes)]
    return [*decodes, _chunk("prompt", prompt, table, None)]


def _chunk(name: str, tokens: list[int], table: range, rule: Sampling | None) -> Chunk:
    return Chunk(
        sequence=SequenceId(f"mixed {name}"), token_ids=tokens, start=0, block_table=table,
        sampling=rule, prompt_ids=(), outputs=(), num_prompt=len(tokens),
    )  # fmt: skip


def _measured_s(runner: DeviceRunner, step: list[Chunk], clock: Callable[[], float]) -> float:
    """As the engine does, so that the host's part is hidden as far as it will be."""
    began = clock()
    launched = [runner.launch(step) for _ in range(runner.depth)]
    for one in launched:
        one.tokens()
    return (clock() - began) / len(launched)
