"""The engine's own steps: decode under graphs, launched ahead as the loop does, and prefill."""

# Shapes: B sequences of a batch.

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.gpu.clock import ROUNDS
from engine.batch import PENDING, Chunk, SequenceId
from engine.kvcache.pool import KvPool
from engine.limits import EngineLimits
from engine.models.model import Dtype, Model
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import token_sampler_for
from engine.runner.gpu.runner import DeviceRunner, LaunchedStep
from protocol.messages import Sampling

BLOCK_TOKENS = 16
GREEDY = Sampling(seed=0, max_tokens=1 << 20, temperature=0.0, ignore_eos=True)
GRAPH_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the engine."""

    batches: Sequence[int]
    context: int
    prompt: int
    num_steps: int
    """Decode steps of a round."""

    @property
    def num_blocks(self) -> int:
        """Of one sequence at its longest."""
        tokens = max(self.context + self.num_steps * (ROUNDS + 1), self.prompt) + 1
        return -(-tokens // BLOCK_TOKENS)


class EngineSide:
    """A runner whose pool holds the largest batch; its KV is noise, for time alone counts."""

    def __init__(self, model: Model, load: Load, *, device: Device, dtype: Dtype) -> None:
        self._load = load
        largest = max(load.batches)
        (layout,) = model.config.kv_layouts(block_tokens=BLOCK_TOKENS, dtype=dtype)
        pool = KvPool(layout, largest * load.num_blocks, device=device.where)
        pool.tensor.normal_()  # zeros would draw less power, and run faster
        blocks = list(range(largest * load.num_blocks))
        self._tables = [blocks[n::largest] for n in range(largest)]
        limits = EngineLimits(
            max_running=largest, max_waiting=1, token_budget=max(load.prompt, largest + 1),
            max_context_tokens=load.num_blocks * BLOCK_TOKENS,
        )  # fmt: skip
        self.runner = DeviceRunner(
            model, pool, device=device, sampler=token_sampler_for(device), limits=limits
        )
        self.graph_bytes = self.runner.capture(limit_bytes=GRAPH_BYTES, sizes=load.batches)

    def decode_step_s(self, batch: int) -> float:
        """Median over rounds of a step's seconds, host work included; one step is always ahead."""
        load, taken_s = self._load, []
        first = self.runner.launch(self._decodes(batch, load.context, 5))
        unread, position = [first], load.context
        for _ in range(ROUNDS + 1):
            started_s = time.perf_counter()
            for _ in range(load.num_steps):
                position += 1
                unread.append(self.runner.launch(self._decodes(batch, position, PENDING)))
                self._read(unread.pop(0), batch)
            taken_s.append((time.perf_counter() - started_s) / load.num_steps)
        self._read(unread.pop(), batch)
        return median(taken_s[1:])

    def prefill_s(self) -> float:
        """Median over rounds of the seconds from a prompt to its first token."""
        taken_s = []
        prompt = [1 + i * 31 % 500 for i in range(self._load.prompt)]
        for _ in range(ROUNDS + 1):
            part = self._chunk(0, prompt, 0)
            started_s = time.perf_counter()
            self._read(self.runner.launch([part]), 1)
            taken_s.append(time.perf_counter() - started_s)
        return median(taken_s[1:])

    def _read(self, launched: LaunchedStep, batch: int) -> None:
        assert len(launched.tokens()) == batch, "a row of the model is no number"

    def _decodes(self, batch: int, position: int, token: int) -> list[Chunk]:
        return [self._chunk(number, [token], position) for number in range(batch)]

    def _chunk(self, number: int, tokens: list[int], start: int) -> Chunk:
        return Chunk(
            sequence=SequenceId(str(number)), token_ids=tokens, start=start,
            block_table=self._tables[number], sampling=GREEDY, prompt_ids=(),
            outputs=(), pending=1 if tokens[0] == PENDING else 0,
        )  # fmt: skip
