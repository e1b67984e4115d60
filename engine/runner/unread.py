"""Steps that are launched and whose tokens are not read: at most as many as the runner is deep."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.batch import Chunk, SequenceId, StepInput
from engine.kvcache.prefix_cache import PrefixCache
from engine.runner.calibration import of_batch
from engine.runner.contract import Launched, Runner, StepHung
from engine.speeds.speedometer import Speedometer
from protocol.messages import Sampling

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadStep:
    batch: StepInput
    launched: Launched
    at: float
    alone: bool
    """It repeats one sequence of a step that failed."""


class UnreadSteps:
    """Oldest first. `speeds` is told how long each one took."""

    def __init__(self, runner: Runner, *, speeds: Speedometer, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._speeds = speeds
        self._clock = clock
        self._steps: deque[UnreadStep] = deque()
        self._read_at = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def is_full(self) -> bool:
        return len(self._steps) >= self._runner.depth

    def launch(self, batch: StepInput, *, alone: bool) -> None:
        """Raises what the runner raises; nothing is launched then."""
        at = self._clock()
        launched = self._runner.launch(batch)
        self._steps.append(UnreadStep(batch=batch, launched=launched, at=at, alone=alone))

    def pop_oldest(self) -> UnreadStep:
        return self._steps.popleft()

    def await_all(self) -> None:
        """Nobody writes into the blocks afterwards, unless the device hangs. Tokens are dropped."""
        for step in self._steps:
            try:
                step.launched.tokens()
            except StepHung:
                given_up = {"steps": len(self._steps)}
                log.exception("device hung; if it does again, see the driver's log", extra=given_up)
                break
            except Exception:
                log.exception("step failed", extra={"sequences": len(step.batch)})
        self._steps.clear()

    def measure(self, step: UnreadStep) -> None:
        """The tokens of `step` were read just now; one launched behind another begins when that
        one ends."""
        now = self._clock()
        self._speeds.measure(of_batch(step.batch, step_s=now - max(step.at, self._read_at)))
        self._read_at = now


def can_compute(runner: Runner, cache: PrefixCache) -> bool:
    """Whether the runner computes a token that is nobody's, with none launched. Without a block to
    do it in, it is taken for granted. Raises StepHung."""
    num_blocks = runner.layout.num_groups
    if cache.num_spare < num_blocks:
        return True
    row = cache.allocate_blocks(num_blocks)
    chunk = Chunk(
        sequence=SequenceId("nobody"), token_ids=(0,), start=0, block_table=row,
        sampling=Sampling(seed=0, max_tokens=1, temperature=0.0), prompt_ids=(), outputs=(),
    )  # fmt: skip
    try:
        runner.launch((chunk,)).tokens()
    except StepHung:
        raise
    except Exception:
        log.exception("the runner fails whatever it is given")
        return False
    finally:
        for block in row:
            cache.let_go(block)
    return True
