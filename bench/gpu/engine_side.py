"""The engine's own steps: decode under graphs, launched ahead as the loop does, and prefill."""

# Shapes: B sequences of a batch.

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.gpu.clock import ROUNDS
from engine.batch import PENDING, Chunk, SequenceId
from engine.kvcache.pool import KvPool
from engine.limits import EngineLimits
from engine.models.model import Dtype, Model
from engine.runner.gpu.device import Device
from engine.runner.gpu.launched import LaunchedStep
from engine.runner.gpu.opening import token_sampler_for
from engine.runner.gpu.runner import DeviceRunner
from protocol.messages import Sampling

BLOCK_TOKENS = 16
GREEDY = Sampling(seed=0, max_tokens=1 << 20, temperature=0.0, ignore_eos=True)
FILTERED = Sampling(
    seed=1, max_tokens=1 << 20, temperature=0.7, top_k=50, top_p=0.9, ignore_eos=True
)  # fmt: skip
"""As published generation configs have it: Llama 3.1's, Qwen's."""
GRAPH_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the engine."""

    batches: Sequence[int]
    context: int
    prompt: int
    num_steps: int
    """Decode steps of a round."""
    long: int
    """Context tokens of the one long sequence."""
    max_context: int
    """Of the engine, which its tables are as wide as; a server's is the model's, not the load's."""
    chunk: int
    """Prompt tokens beside the decodes of a mixed step."""

    @property
    def num_long_blocks(self) -> int:
        return -(-(self.long + self.num_steps * (ROUNDS + 1) + 1) // BLOCK_TOKENS)

    @property
    def num_blocks(self) -> int:
        """Of one sequence at its longest."""
        tokens = max(self.context + self.num_steps * (ROUNDS + 1), self.prompt, self.chunk) + 1
        return -(-tokens // BLOCK_TOKENS)


class EngineSide:
    """A runner whose pool holds the largest batch; its KV is noise, for time alone counts."""

    def __init__(self, model: Model, load: Load, *, device: Device, dtype: Dtype) -> None:
        self._load = load
        largest = max(load.batches)
        (layout,) = model.config.kv_layouts(block_tokens=BLOCK_TOKENS, dtype=dtype)
        short = largest * load.num_blocks
        pool = KvPool(layout, short + load.num_long_blocks, device=device.where)
        pool.tensor.normal_()  # zeros would draw less power, and run faster
        self._tables = [list(range(short))[n::largest] for n in range(largest)]
        self._long_table = list(range(short, short + load.num_long_blocks))
        limits = EngineLimits(
            max_running=largest, max_waiting=1,
            token_budget=max(load.prompt, largest + 1, largest + load.chunk),
            max_context_tokens=load.max_context,
        )  # fmt: skip
        self.runner = DeviceRunner(
            model, pool, device=device, sampler=token_sampler_for(device), limits=limits
        )
        self.graph_bytes = self.runner.capture(limit_bytes=GRAPH_BYTES, sizes=load.batches)

    def decode_step_s(self, batch: int, *, rule: Sampling = GREEDY, ragged: bool = False) -> float:
        """Median over rounds of a step's seconds, host work included; one step is always ahead.
        `ragged`: the first sequence is the long one."""
        steps = self._decodes(batch, rule, ragged)
        return self._median_step_s(steps, num_answers=batch)

    def mixed_step_s(self, batch: int) -> float:
        """Of a step of decodes with a part of a prompt beside them."""
        assert batch < len(self._tables), "one table is the prompt's"
        steps, tokens = self._decodes(batch, GREEDY, False), [7] * self._load.chunk

        def mixed(step: int) -> list[Chunk]:
            return [*steps(step), self._chunk(len(self._tables) - 1, tokens, 0, rule=None)]

        return self._median_step_s(mixed, num_answers=batch)

    def decode(self, batch: int, *, times: int) -> Callable[[], None]:
        """Does `times` steps, each read before the next is launched."""
        steps = self._decodes(batch, GREEDY, False)

        def run() -> None:
            for _ in range(times):
                self._read(self.runner.launch(steps(0)), batch)

        return run

    def prefill(self) -> None:
        """One prompt, to its first token."""
        prompt = [1 + i * 31 % 500 for i in range(self._load.prompt)]
        self._read(self.runner.launch([self._chunk(0, prompt, 0)]), 1)

    def prefill_s(self) -> float:
        """Median over rounds of the seconds from a prompt to its first token."""
        taken_s = []
        for _ in range(ROUNDS + 1):
            started_s = time.perf_counter()
            self.prefill()
            taken_s.append(time.perf_counter() - started_s)
        return median(taken_s[1:])

    def _median_step_s(self, steps: Callable[[int], list[Chunk]], *, num_answers: int) -> float:
        num_steps, taken_s = self._load.num_steps, []
        unread = [self.runner.launch(steps(0))]
        for done in range(ROUNDS + 1):
            started_s = time.perf_counter()
            for step in range(num_steps):
                unread.append(self.runner.launch(steps(1 + done * num_steps + step)))
                self._read(unread.pop(0), num_answers)
            taken_s.append((time.perf_counter() - started_s) / num_steps)
        self._read(unread.pop(), num_answers)
        return median(taken_s[1:])

    def _read(self, launched: LaunchedStep, batch: int) -> None:
        assert len(launched.tokens()) == batch, "a row of the model is no number"

    def _decodes(self, batch: int, rule: Sampling, ragged: bool) -> Callable[[int], list[Chunk]]:
        """Of step 0, which is given tokens, and of those after it, launched ahead."""
        load = self._load

        def of(step: int) -> list[Chunk]:
            chunks = []
            for number in range(batch):
                is_long = ragged and number == 0
                start = (load.long if is_long else load.context) + step
                chunks.append(self._chunk(
                    number, [PENDING if step else 5], start, rule=rule,
                    table=self._long_table if is_long else None,
                ))  # fmt: skip
            return chunks

        return of

    def _chunk(
        self, number: int, tokens: list[int], start: int, *, rule: Sampling | None = GREEDY,
        table: list[int] | None = None,
    ) -> Chunk:  # fmt: skip
        return Chunk(
            sequence=SequenceId(str(number)), token_ids=tokens, start=start,
            block_table=self._tables[number] if table is None else table, sampling=rule,
            prompt_ids=(), outputs=(), pending=1 if tokens[0] == PENDING else 0,
        )  # fmt: skip
