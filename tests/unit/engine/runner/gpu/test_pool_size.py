"""How much of a device's memory an engine takes, and what it says where that is too little."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.forwards import pool_for
from support.host_device import HostDevice
from support.words import LAYOUT

from engine.assembly import assemble
from engine.checkpoint.load import load_model
from engine.kvcache.pool import KvPool
from engine.limits import EngineLimits
from engine.runner.gpu.arrays import StepArrays, StepTensors, widest_table
from engine.runner.gpu.device import Step
from engine.runner.gpu.pool_size import largest_step, largest_step_bytes, pool_bytes
from engine.runner.gpu.runner import DeviceRunner
from engine.runner.gpu.upload import Upload
from engine.sampling.rows import sample_on_host
from protocol.errors import SettingsError, TransferError
from protocol.layout import KvLayout
from protocol.process.settings import WorkerSettings
from tools.make_checkpoint import Shape, make_checkpoint

GIB = 1 << 30
LIMITS = EngineLimits(max_running=4, max_waiting=8, token_budget=24, max_context_tokens=256)


class SmallDevice(HostDevice):
    """Has so many bytes, and says that a step needs some of them."""

    free, peak = 1 << 20, 1 << 18

    def free_bytes(self) -> int:
        return self.free

    def peak_bytes(self, step: Step) -> int:
        step()
        return self.peak


def test_the_pool_takes_its_share_of_what_weights_and_the_largest_step_leave() -> None:
    size = pool_bytes(free_bytes=60 * GIB, peak_bytes=4 * GIB, graph_bytes=2 * GIB, share=0.9)
    assert size == int(56 * GIB * 0.9) - 2 * GIB


def test_where_little_is_free_the_graphs_get_an_eighth_and_never_all() -> None:
    assert pool_bytes(free_bytes=8000, peak_bytes=0, graph_bytes=GIB, share=0.5) == 3000
    assert pool_bytes(free_bytes=10, peak_bytes=20, graph_bytes=GIB, share=0.9) == 0


def test_the_largest_step_has_every_token_and_every_row() -> None:
    parts = largest_step(LAYOUT, LIMITS)
    assert sum(len(part.token_ids) for part in parts) == 24
    assert len(parts) == 4 and all(part.sampling is not None for part in parts)
    tables = [block for part in parts for block in part.block_table]
    assert len(set(tables)) == len(tables)


def test_steps_with_the_widest_tables_are_measured_too(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = uploaded(monkeypatch)
    model = load_model(checkpoint, dtype="float32", native=False)
    (layout,) = model.config.kv_layouts(block_tokens=4, dtype="float32")
    largest_step_bytes(model, layout, device=HostDevice(), sampler=sample_on_host, limits=LIMITS)
    wide = {len(s.token_ids_T): s.tables_GSB.shape[2] for s in steps if len(s.ends_S) == 1}
    assert wide == dict.fromkeys((1, 4, 16, 24), widest_table(256, layout))
    assert [256] * 4 in [step.ends_S.tolist() for step in steps], "decodes of the longest context"
    assert widest_table(256, layout) > 256 // 4


def uploaded(monkeypatch: pytest.MonkeyPatch) -> list[StepArrays]:
    """Every step from now on."""
    steps, upload_step = list[StepArrays](), Upload.upload_step

    def seen(upload: Upload, step: StepArrays) -> StepTensors:
        steps.append(step)
        return upload_step(upload, step)

    monkeypatch.setattr(Upload, "upload_step", seen)
    return steps


def test_max_model_len_bounds_context_tables_and_scratch(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Roomy(SmallDevice):
        free = 1 << 24

    monkeypatch.setattr("engine.ops.work.SPLIT_TOKENS", 16)
    found = dict[int, tuple[int, int, int]]()
    for most in (64, 256):
        steps = uploaded(monkeypatch)
        assembled(checkpoint, Roomy(), max_model_len=most)
        found[most] = (
            max(int(step.ends_S.max()) for step in steps),
            max(step.tables_GSB.shape[2] for step in steps),
            max(step.work.passes_G[0][0].num_slots for step in steps),
        )
    # Scratch for four decodes over tables of blocks that are as long as a split here.
    assert found == {64: (64, 16, 4 * 16), 256: (256, 32, 4 * 32)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, Shape(context=256))
    return path


def assembled(
    checkpoint: Path, device: HostDevice, *, decodes: bool = True, **more: object
) -> DeviceRunner:
    values = {"dtype": "float32", "token_budget": 24, "max_running": 4, "kv_memory_share": 0.5}
    settings = WorkerSettings.model_validate({"model": checkpoint, **values, **more})

    def memory(layout: KvLayout, num_blocks: int) -> tuple[None, torch.Tensor]:
        if num_blocks > 10_000:
            raise TransferError("out of memory")
        return None, torch.zeros(layout.block_bytes * num_blocks, dtype=torch.uint8)

    parts = assemble(
        settings, eos_token_ids=(), memory=memory, progress=lambda done, total: None,
        device=device, decodes=decodes,
    )  # fmt: skip
    assert isinstance(parts.runner, DeviceRunner)
    return parts.runner


def test_an_engine_on_a_device_sizes_its_pool_by_measuring(checkpoint: Path) -> None:
    runner = assembled(checkpoint, SmallDevice())
    left = SmallDevice.free - SmallDevice.peak
    assert runner.num_blocks == (left // 2 - left // 8) // runner.layout.block_bytes
    assert runner.depth == 2


def test_workers_on_one_device_measure_it_one_after_the_other(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the pool and the captured steps have their memory."""
    done = list[str]()

    @contextmanager
    def turn(key: str) -> Iterator[bool]:
        done.append(f"at {key}")
        yield True
        done.append("over")

    class Told(SmallDevice):
        def free_bytes(self) -> int:
            done.append("free")
            return self.free

        def capture(self, step: Step) -> Step:
            done.append("captured")
            return super().capture(step)

    monkeypatch.setattr("engine.assembly.take_turn", turn)
    device = Told()
    assembled(checkpoint, device)
    assert done[0] == f"at {device.key}" and done[-1] == "over"
    assert done.count("free") == 2 and done.count("captured") == 3


def test_the_settings_may_say_the_size_of_the_pool_and_leave_graphs_out(checkpoint: Path) -> None:
    assert assembled(checkpoint, HostDevice(), kv_blocks=9).captured_sizes == (1, 2, 4)
    runner = assembled(checkpoint, HostDevice(), kv_blocks=9, cuda_graphs=False)
    assert runner.num_blocks == 9 and runner.captured_sizes == ()
    with pytest.raises(SettingsError, match=r"kv_bytes: 9: two blocks"):
        assembled(checkpoint, HostDevice(), kv_bytes=9)
    by_bytes = assembled(checkpoint, HostDevice(), kv_bytes=5 * runner.layout.block_bytes + 1)
    assert by_bytes.num_blocks == 5


def test_an_engine_that_decodes_nothing_captures_nothing_and_has_their_memory_for_kv(
    checkpoint: Path,
) -> None:
    runner = assembled(checkpoint, SmallDevice(), decodes=False)
    assert runner.captured_sizes == ()
    left = SmallDevice.free - SmallDevice.peak
    assert runner.num_blocks == left // 2 // runner.layout.block_bytes


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("load_model", "model: .* host has no memory left for weights in float32; take a smaller"),
        ("peak_bytes", "token_budget: 24, max_running: 4: .* for the largest step; lower either"),
        ("capture", "max_running: 4: .* a step beside 9 blocks .*; lower it or kv_blocks"),
    ],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: out of memory")]
)
def test_a_device_without_memory_left_is_refused_with_what_to_change(
    checkpoint: Path, call: str, said: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **more: object) -> None:
        raise error

    if call == "load_model":
        monkeypatch.setattr("engine.assembly.load_model", full)
    else:
        monkeypatch.setattr(HostDevice, call, full)
    with pytest.raises(SettingsError, match=said):
        assembled(checkpoint, HostDevice(), kv_blocks=9)


def test_other_failures_of_a_device_stay_what_they_are(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: HostDevice, step: Step) -> int:
        raise RuntimeError("CUDA error: illegal address")

    monkeypatch.setattr(HostDevice, "peak_bytes", broken)
    with pytest.raises(RuntimeError, match="illegal address"):
        assembled(checkpoint, HostDevice())


def test_what_a_device_cannot_do_is_refused(checkpoint: Path) -> None:
    class Full(SmallDevice):
        free = 1 << 18

    with pytest.raises(SettingsError, match=r"kv_memory_share: 0.5: 0 bytes are left for KV"):
        assembled(checkpoint, Full())
    with pytest.raises(SettingsError, match=r"kv_blocks: 20000 blocks .* on host: out of memory"):
        assembled(checkpoint, HostDevice(), kv_blocks=20_000)
    with pytest.raises(SettingsError, match=r"kv_huge_pages: True"):
        assembled(checkpoint, HostDevice(), kv_huge_pages=True)


def test_beyond_its_bound_capturing_leaves_out_all_but_the_small_batches(checkpoint: Path) -> None:
    class Filling(HostDevice):
        def held_bytes(self) -> int:
            calls.append(0)
            return 100 * len(calls)

        def free_bytes(self) -> int:
            raise AssertionError("others' memory is counted")

    calls: list[int] = []
    model = load_model(checkpoint, dtype="float32", native=False)
    limits = EngineLimits(max_running=32, max_waiting=8, token_budget=40, max_context_tokens=256)
    runner = DeviceRunner(
        model, pool_for(model), device=Filling(), sampler=sample_on_host, limits=limits
    )
    assert runner.capture(limit_bytes=150) == 600
    assert runner.captured_sizes == (1, 2, 4, 8, 24, 32)


def test_a_pool_over_a_tensor_is_those_bytes() -> None:
    memory = torch.zeros(3 * LAYOUT.block_bytes + 5, dtype=torch.uint8)
    pool = KvPool(LAYOUT, 3, memory)
    pool.tensor[1] = 1
    assert memory.view(torch.uint8)[LAYOUT.block_bytes :].any()
    assert not memory[: LAYOUT.block_bytes].any()
    with pytest.raises(ValueError, match="4 blocks need"):
        KvPool(LAYOUT, 4, memory)
