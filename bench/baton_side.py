"""Baton's engine as a side of the benchmark: the loop, the scheduler and the model."""

import importlib.metadata
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from threading import Event

import msgspec
import torch

from bench.workload import (
    BLOCK_TOKENS,
    MAX_RUNNING,
    NUM_BLOCKS,
    RUN_LIMIT_S,
    TOKEN_BUDGET,
    Job,
    Times,
    TooSlow,
)
from engine.batch import RowsRead, SequenceId
from engine.checkpoint.load import load_model
from engine.commands import Submission
from engine.kvcache.pool import KvPool
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.models.model import Dtype
from engine.observer import PrefixToPull, SequenceToken
from engine.runner.cpu import TorchRunner
from engine.sampling.grammar import Grammars
from engine.sequence import Complete, SequenceUsage, Verdict
from protocol.blocks import BlockChange
from protocol.messages import Sampling
from protocol.text.tokenizer import Tokenizer


class BatonSide:
    name = "baton"

    def __init__(self, path: Path, *, dtype: Dtype) -> None:
        self.rule = Sampling(seed=0, max_tokens=1, temperature=0.0, ignore_eos=True)
        """Of all jobs, but for `max_tokens`."""
        self._num_runs = 0
        model = load_model(path, dtype=dtype)
        self.version = f"{importlib.metadata.version('torch')}, {model.ops.name} kernels"
        (layout,) = model.config.kv_layouts(block_tokens=BLOCK_TOKENS, dtype=dtype)
        self._clockwork = _Clockwork()
        self._engine = Engine(
            runner=TorchRunner(model, KvPool(layout, NUM_BLOCKS)),
            limits=EngineLimits(
                max_running=MAX_RUNNING,
                max_waiting=1024,
                token_budget=TOKEN_BUDGET,
                max_context_tokens=model.config.max_context_tokens,
            ),
            eos_token_ids=(),
            compat="bench",
            generations=[0] * NUM_BLOCKS,
            observer=self._clockwork,
            windows=[group.window for group in model.config.kv_groups],
            dynamic_after=model.config.dynamic_after,
            grammars=Grammars(Tokenizer.load(path), num_threads=torch.get_num_threads()),
        )
        self._engine.start()

    def run(self, jobs: Sequence[Job]) -> list[Times]:
        self._clockwork.begin(len(jobs))
        self._num_runs += 1  # an id is free again only a moment after its ending
        names = [f"{self._num_runs}.{index}" for index in range(len(jobs))]
        started = time.perf_counter()
        for name, job in zip(names, jobs, strict=True):
            sampling = msgspec.structs.replace(self.rule, max_tokens=job.num_tokens)
            self._engine.submit(
                Submission(id=SequenceId(name), prompt=job.prompt, sampling=sampling)
            )
        times = self._clockwork.finish(timeout_s=RUN_LIMIT_S)
        return [[at - started for at in times[name]] for name in names]

    def close(self) -> None:
        self._engine.stop()


class _Clockwork:
    """An EngineObserver that notes when each token comes."""

    def begin(self, num_jobs: int) -> None:
        self._left, self._done = num_jobs, Event()
        self._times: dict[str, Times] = {}
        self._failure: object = None

    def finish(self, *, timeout_s: float) -> dict[str, Times]:
        if not self._done.wait(timeout_s):
            raise TooSlow(f"baton: no end within {timeout_s:.0f} s")
        if self._failure is not None:
            raise RuntimeError(f"the run did not end well: {self._failure}")
        return self._times

    def read(self, sequence: SequenceId, first: int, read: RowsRead) -> None:
        pass

    def step(self, tokens: Sequence[SequenceToken]) -> Collection[SequenceId]:
        now = time.perf_counter()
        for token in tokens:
            self._times.setdefault(token.id, []).append(now)
        return ()

    def ended(self, sequence: SequenceId, verdict: Verdict, usage: SequenceUsage) -> None:
        if not isinstance(verdict, Complete):
            self._failure = verdict
        self._left -= 1
        if not self._left:
            self._done.set()

    def broken(self, error: BaseException) -> None:
        self._failure = error
        self._done.set()

    def admitted(
        self,
        sequence: SequenceId,
        block_table: tuple[int, ...],
        generations: tuple[int, ...],
        num_cached_tokens: int,
        queued_s: float,
    ) -> None:
        assert num_cached_tokens == 0, "a prefix hit would flatter us"

    def pull(self, sequence: SequenceId, prefix: PrefixToPull) -> None:
        raise AssertionError("nobody was named to pull from")

    def computed(self, sequence: SequenceId, num_tokens: int) -> None: ...

    def settled(self) -> None: ...

    def blocks_changed(self, changes: Sequence[BlockChange]) -> None: ...
