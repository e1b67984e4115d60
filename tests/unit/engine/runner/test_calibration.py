"""Steps that are computed to be measured, before any request comes."""

from collections.abc import Sequence

import pytest
from support.fake_runner import FakeRunner

from engine.batch import Chunk
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.prefix_cache import PrefixCache
from engine.kvcache.windows import Window
from engine.limits import EngineLimits
from engine.runner.calibration import calibrate
from engine.runner.contract import ComputedStep, StepHung
from engine.speeds.step_fit import MeasuredStep

LIMITS = EngineLimits(max_running=4, max_waiting=8, token_budget=64, max_context_tokens=4096)


class TimedRunner:
    """Each step takes `token_s` for each of its tokens, of a time that nobody waits for."""

    token_s = 0.001
    depth = 1

    def __init__(self, num_blocks: int, windows: Sequence[Window]) -> None:
        self.num_blocks, self.now = num_blocks, 0.0
        self.layout = FakeRunner(num_blocks=num_blocks, windows=windows).layout

    def launch(self, chunks: Sequence[Chunk]) -> ComputedStep:
        self.now += self.token_s * sum(len(chunk.token_ids) for chunk in chunks)
        for chunk in chunks:
            num_rows = len(chunk.block_table) // self.layout.num_groups
            assert num_rows * self.layout.block_tokens >= chunk.position
        return ComputedStep({})


class Calibration:
    def __init__(self, *, num_blocks: int = 64, windows: Sequence[Window] = (None,)) -> None:
        self.runner = TimedRunner(num_blocks, windows)
        self.cache = PrefixCache(
            BlockAllocator(num_blocks, generations=[0] * num_blocks),
            block_tokens=self.runner.layout.block_tokens, compat="test", windows=tuple(windows),
        )  # fmt: skip

    def steps(self, *, within_s: float, limits: EngineLimits = LIMITS) -> list[MeasuredStep]:
        return calibrate(
            self.runner, self.cache, limits=limits, within_s=within_s,
            clock=lambda: self.runner.now,
        )  # fmt: skip


def test_chunks_and_decodes_are_measured_at_two_contexts_each() -> None:
    steps = Calibration(num_blocks=512).steps(within_s=100.0)
    chunks = {(s.num_tokens, s.num_attended) for s in steps if s.num_tokens}
    decodes = {(s.num_decodes, s.num_attended) for s in steps if s.num_decodes}
    assert len({length for length, _ in chunks}) >= 2
    assert len({attended for length, attended in chunks if length == 64}) == 2
    assert len({attended for num, attended in decodes if num == 4}) == 2
    assert {num for num, _ in decodes} == {1, 4}


@pytest.mark.parametrize("windows", [(None,), (None, 32)])
def test_the_pool_is_as_it_was(windows: Sequence[Window]) -> None:
    bench = Calibration(windows=windows)
    before = bench.cache.num_spare
    assert bench.steps(within_s=100.0)
    assert bench.cache.num_spare == before == 64
    assert not bench.cache.take_changes()


def test_a_slow_engine_computes_the_cheap_steps_alone() -> None:
    bench = Calibration(num_blocks=512)
    bench.runner.token_s = 0.01
    steps = bench.steps(within_s=1.5)
    assert {step.num_tokens for step in steps} == {0, 32}
    assert bench.runner.now < 1.5


def test_a_pool_of_few_blocks_is_enough() -> None:
    assert Calibration(num_blocks=8).steps(within_s=100.0)


def test_a_runner_that_fails_leaves_the_speeds_unknown_and_the_blocks_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object, chunks: Sequence[Chunk]) -> ComputedStep:
        raise RuntimeError("no kernel for this")

    bench = Calibration()
    monkeypatch.setattr(TimedRunner, "launch", fail)
    assert bench.steps(within_s=100.0) == []
    assert bench.cache.num_spare == 64


def test_a_device_that_hangs_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_: object, chunks: Sequence[Chunk]) -> ComputedStep:
        raise StepHung("the device does not answer")

    monkeypatch.setattr(TimedRunner, "launch", hang)
    with pytest.raises(StepHung):
        Calibration().steps(within_s=100.0)
