"""An engine's steps on a device: the tokens of the CPU, captured or not, launched ahead or not.

On a GPU with the Triton kernels; elsewhere the same bodies over the host's stand-in.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from support.device_steps import (
    EOS,
    GREEDY,
    LIMITS,
    SEEDED,
    ahead,
    all_with,
    expected,
    stepwise,
)  # fmt: skip
from support.gpu import why_no_gpu
from support.host_device import HostDevice
from support.mini_router import MiniRouter
from support.worker_cluster import GREEDY as TWELVE
from support.worker_cluster import WorkerCluster, drive, prompt, tiny_checkpoint

from engine.batch import SampledToken
from engine.checkpoint.load import load_model
from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import chooser_for, ops_for
from engine.runner.gpu.pool_size import blocks_left, largest_step_bytes
from engine.runner.gpu.runner import DeviceRunner
from protocol.layout import KvLayout
from protocol.messages import Finished, Landed, PrefillDone, Sampling
from tools.make_checkpoint import Shape, make_checkpoint

NUM_STEPS = 9
GRAPH_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device with a model on it, and the same model on the CPU."""

    device: Device
    model: Model
    on_cpu: Model

    @property
    def layout(self) -> KvLayout:
        (layout,) = self.model.config.kv_layouts(block_tokens=8, dtype="float32")
        return layout

    def runner(self, *, graphs: bool) -> DeviceRunner:
        pool = KvPool(self.layout, 64, device=self.device.where)
        pool.tensor.fill_(float("nan"))  # reading what nobody wrote shows
        runner = DeviceRunner(
            self.model, pool, device=self.device, choose=chooser_for(self.device), limits=LIMITS,
            eos_token_ids=EOS,
        )  # fmt: skip
        if graphs:
            runner.capture(limit_bytes=GRAPH_BYTES)
        return runner


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: a second thread would only wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "host":
        return HostDevice()
    if why := why_no_gpu():
        pytest.skip(why)
    from engine.runner.gpu.cuda import CudaDevice

    return CudaDevice(0)


@pytest.fixture(scope="module")
def place(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, Shape(family="qwen3", head_dim=64))
    device.bind()
    ops = ops_for(device, dtype=torch.float32)
    return Place(
        device=device,
        model=load_model(path, dtype="float32", ops=ops, device=device.where),
        on_cpu=load_model(path, dtype="float32", native=False),
    )


def test_greedy_tokens_are_those_of_the_cpu(place: Place) -> None:
    rules = all_with(GREEDY)
    tokens = stepwise(place.runner(graphs=False), rules, count=NUM_STEPS)
    assert tokens == expected(place.on_cpu, rules, count=NUM_STEPS)


@pytest.mark.parametrize("rule", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_captured_steps_give_the_tokens_of_steps_launched_kernel_by_kernel(
    place: Place, rule: Sampling
) -> None:
    captured, eager = place.runner(graphs=True), place.runner(graphs=False)
    assert captured.captured_sizes and not eager.captured_sizes
    rules = all_with(rule)
    tokens = stepwise(captured, rules, count=NUM_STEPS)
    assert tokens == stepwise(eager, rules, count=NUM_STEPS)
    assert all(len(said) == NUM_STEPS for said in tokens.values())


@pytest.mark.parametrize("rule", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("graphs", [True, False], ids=["captured", "eager"])
def test_steps_launched_ahead_give_the_tokens_of_steps_that_wait(
    place: Place, rule: Sampling, graphs: bool
) -> None:
    rules = all_with(rule)
    waiting = stepwise(place.runner(graphs=graphs), rules, count=NUM_STEPS)
    assert ahead(place.runner(graphs=graphs), rules, count=NUM_STEPS) == waiting


def test_penalties_bias_bans_and_logprobs_are_those_of_the_cpu(place: Place) -> None:
    rule = Sampling(
        seed=0, max_tokens=NUM_STEPS, temperature=0.0, num_logprobs=3, repetition_penalty=1.3,
        presence_penalty=0.4, frequency_penalty=0.3, logit_bias=((44, 2.5), (2, 9.0)),
        min_tokens=4,
    )  # fmt: skip
    rules = all_with(rule)
    want = expected(place.on_cpu, rules, count=NUM_STEPS)
    tokens = stepwise(place.runner(graphs=True), rules, count=NUM_STEPS)

    def close(mine: SampledToken, theirs: SampledToken) -> bool:
        values = [p for _, p in mine.top] == pytest.approx([p for _, p in theirs.top], abs=1e-3)
        return bool(values) and mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)

    for sequence in rules:
        for mine, theirs in zip(tokens[sequence], want[sequence], strict=True):
            assert mine.token_id == theirs.token_id and close(mine, theirs)


def test_the_pool_is_sized_by_running_the_largest_step(place: Place) -> None:
    peak_bytes = largest_step_bytes(
        place.model, place.layout, device=place.device, choose=chooser_for(place.device),
        limits=LIMITS,
    )  # fmt: skip
    free_bytes = place.device.free_bytes()
    num_blocks = blocks_left(
        place.layout, device=place.device, free_bytes=free_bytes, peak_bytes=peak_bytes, share=0.5
    )
    pool_bytes = num_blocks * place.layout.block_bytes
    assert 0 < pool_bytes < 0.5 * free_bytes


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerCluster]:
    if why := why_no_gpu():
        pytest.skip(why)
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    with ExitStack() as stack:
        cluster = WorkerCluster(checkpoint, stack)
        for worker in ("prefill-0", "decode-0"):
            cluster.start(worker, "--device", "cuda")
        yield cluster


@pytest.mark.gpu
@pytest.mark.system
@pytest.mark.parametrize("length", [1, 9, 100])
def test_two_workers_share_a_gpu_and_hand_over_by_cuda_ipc(
    workers: WorkerCluster, length: int
) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        tokens = prompt(length, salt=length)
        first, second = await router.disaggregated(f"apart-{length}", tokens, TWELVE)
        local = await router.decode("decode-0", f"local-{length}", tokens, TWELVE, salt="other")
        await router.ended(local)
        assert isinstance(first.ending, PrefillDone) and isinstance(second.ending, Finished)
        assert second.tokens == local.tokens and len(local.tokens) == 12
        landed = second.find(Landed)
        assert isinstance(landed, Landed) and landed.transport == "cuda_ipc"
        await router.idle("prefill-0", "decode-0")

    drive(workers, test)
