"""A scheduler over the runner of a device, moved by hand as `support.stepper` does, with a model
that has no weights: a token follows from the one before it, its place and the rules alone."""

# Shapes: T tokens, R rows sampled, V vocabulary.

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from support.host_device import HostDevice
from support.stepper import BLOCK_TOKENS, Stepper
from torch import Tensor

from engine.batch import Chunk, SequenceId, StepInput
from engine.kvcache.pool import KvPool
from engine.limits import EngineLimits
from engine.models.model import Model
from engine.ops.inputs import ForwardInputs
from engine.runner.contract import Runner
from engine.runner.cpu import TorchRunner
from engine.runner.gpu.runner import DeviceRunner
from engine.sampling.rows import sample_on_host
from protocol.layout import KvLayout
from protocol.messages import Sampling

VOCABULARY = 48
EOS = (2, 3)
LAYOUT = KvLayout(
    num_layers=1, num_kv_heads=1, head_dim=2, block_tokens=BLOCK_TOKENS, dtype="float32"
)


class BigramModel:
    """Logits of a token by its id and place; stores no KV."""

    takes_reaches = False
    config = SimpleNamespace(vocab_size=VOCABULARY, kv_groups=(SimpleNamespace(window=None),))

    def __init__(self) -> None:
        dice = torch.Generator().manual_seed(5)
        self._by_id = torch.randn(VOCABULARY, VOCABULARY, generator=dice) * 3
        self._by_place = torch.randn(7, VOCABULARY, generator=dice)

    def forward(self, inputs: ForwardInputs, pool: KvPool, *, out: Tensor | None = None) -> Tensor:
        ids_R, places_R = inputs.token_ids_T[inputs.rows_R], inputs.positions_T[inputs.rows_R]
        logits_RV = self._by_id[ids_R] + self._by_place[places_R % 7]
        return logits_RV if out is None else out.copy_(logits_RV)


def device_runner(*, num_blocks: int, limits: EngineLimits, graphs: bool = True) -> DeviceRunner:
    runner = DeviceRunner(
        cast(Model, BigramModel()), KvPool(LAYOUT, num_blocks), device=HostDevice(),
        sampler=sample_on_host, limits=limits, eos_token_ids=EOS,
    )  # fmt: skip
    if graphs:
        runner.capture(limit_bytes=1 << 30)
    return runner


def undisturbed(prompt: Sequence[int], rule: Sampling, *, count: int) -> list[int]:
    """What the CPU's runner says, alone and with every token read."""
    runner = TorchRunner(cast(Model, BigramModel()), KvPool(LAYOUT, 64), eos_token_ids=EOS)
    outputs = list[int]()
    while len(outputs) < count and not (outputs and outputs[-1] in EOS):
        known = [*prompt, *outputs]
        start = len(known) - 1 if outputs else 0
        chunk = Chunk(
            sequence=SequenceId("one"), token_ids=known[start:], start=start,
            block_table=range(64), sampling=rule, prompt_ids=sorted(set(prompt)), outputs=outputs,
        )  # fmt: skip
        outputs.append(runner.launch([chunk]).tokens()[SequenceId("one")][0].token_id)
    return outputs


class DeviceStepper(Stepper):
    """Depth 2. `num_blocks` few enough for preemption."""

    def __init__(self, *, num_blocks: int, max_running: int, graphs: bool = True) -> None:
        super().__init__(
            num_blocks=num_blocks, max_running=max_running, token_budget=max_running + 5, depth=2,
            eos_token_ids=EOS,
        )  # fmt: skip
        limits = EngineLimits(
            max_running=max_running, max_waiting=100, token_budget=max_running + 5,
            max_context_tokens=200,
        )  # fmt: skip
        self.device = device_runner(num_blocks=num_blocks, limits=limits, graphs=graphs)
        self.batches: list[StepInput] = []
        self.runner = cast(Any, _Remembering(self.device, self.batches))

    def fail(self) -> None:
        """The oldest step fails; it and those behind it are undone."""
        self.suspects += [chunk.sequence for chunk in self.batches[-len(self.in_flight)]]
        for step in self.in_flight:
            step.tokens()
            self.scheduler.undo_newest()
        self.in_flight.clear()
        self._hear()


class _Remembering:
    widest, depth = None, 2

    def __init__(self, runner: Runner, batches: list[StepInput]) -> None:
        self._runner, self._batches = runner, batches

    def launch(self, chunks: StepInput) -> object:
        self._batches.append(chunks)
        return self._runner.launch(chunks)
