"""Puts an engine's parts together from a checkpoint and memory that the worker provides."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, TypeVar

from engine.checkpoint.dtype import choose_dtype, stored_dtype
from engine.checkpoint.load import load_model
from engine.checkpoint.reader import Progress
from engine.kvcache.pool import Buffer, KvPool, fewest_blocks
from engine.kvcache.windows import Window
from engine.limits import EngineLimits, default_limits
from engine.models.config import ModelConfig, read_config
from engine.models.model import DTYPES, Dtype, Model
from engine.ops.choose import choose_ops
from engine.ops.contract import Ops
from engine.runner.cpu import TorchRunner
from engine.runner.gpu.device import Device
from engine.runner.gpu.mixed_steps import choose_mixed
from engine.runner.gpu.opening import (
    ops_for,
    score_penaliser_for,
    token_masker_for,
    token_sampler_for,
)
from engine.runner.gpu.pool_size import (
    GRAPH_BYTES,
    blocks_left,
    largest_step_bytes,
    refused_when_full,
)
from engine.runner.gpu.runner import DeviceRunner
from protocol.errors import SettingsError, TransferError
from protocol.layout import KvLayout, compat_hash, transfer_compat
from protocol.process.kernels.c_kernels import NoKernels
from protocol.process.machine import free_memory_bytes
from protocol.process.settings import WorkerSettings
from protocol.process.turns import take_turn
from protocol.text.text_config import JsonFile, read_json_file

log = logging.getLogger(__name__)

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)

FULL_CONTEXTS = 16
MAX_DEFAULT_BYTES = 1 << 30
FREE_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly(Generic[M_co]):
    runner: TorchRunner | DeviceRunner
    config: ModelConfig
    layouts: tuple[KvLayout, ...]
    windows: tuple[Window, ...]
    """Of each KV group."""
    compat: str
    """Workers with the same may be paired, and their blocks' hashes compared."""
    transfer_compat: str
    """Blocks can be fetched between those that have the same."""
    limits: EngineLimits
    eos_token_ids: frozenset[int]
    """Every token that ends a text, whichever file of the checkpoint names it."""
    memory: M_co
    """That the pool lies in, for the caller to close."""

    @property
    def layout(self) -> KvLayout:
        """The only one: a runner has one pool, and `Registration` and tickets name one layout."""
        (layout,) = self.layouts
        return layout


def num_pool_blocks(
    layout: KvLayout,
    *,
    max_context_tokens: int,
    free_bytes: int,
    kv_blocks: int | None = None,
    kv_bytes: int | None = None,
) -> int:
    """Blocks of the pool: those asked for, or room for 16 full contexts within a quarter of the
    free memory and 1 GiB, at least two of each KV group. Raises SettingsError as
    `asked_blocks`."""
    asked = asked_blocks(layout, kv_blocks=kv_blocks, kv_bytes=kv_bytes)
    if asked is not None:
        return asked
    wanted = FULL_CONTEXTS * layout.num_blocks(max_context_tokens) * layout.block_bytes
    num_bytes = min(wanted, free_bytes // FREE_SHARE, MAX_DEFAULT_BYTES)
    return max(fewest_blocks(layout), num_bytes // layout.block_bytes)


def asked_blocks(layout: KvLayout, *, kv_blocks: int | None, kv_bytes: int | None) -> int | None:
    """Blocks that the settings ask for; None: they leave it open. Raises SettingsError for fewer
    than two of each KV group."""
    if kv_blocks is not None:
        num_blocks, asked = kv_blocks, f"kv_blocks: {kv_blocks}"
    elif kv_bytes is not None:
        num_blocks, asked = kv_bytes // layout.block_bytes, f"kv_bytes: {kv_bytes}"
    else:
        return None
    least = fewest_blocks(layout)
    if num_blocks < least:
        raise SettingsError(
            f"{asked}: two blocks in each KV group are {least} blocks, of {layout.block_bytes} "
            "bytes each"
        )
    return num_blocks


StartStep = Literal["kernels", "load", "warm"]
"""Of putting an engine together; one may come more than once."""

Memory = Callable[[KvLayout, int], tuple[M, Buffer]]
"""Makes memory for so many blocks of a layout, on the device that the engine computes on, and
gives it with all its bytes."""


def assemble(
    settings: WorkerSettings,
    *,
    eos_token_ids: Collection[int],
    memory: Memory[M],
    progress: Progress,
    config_file: JsonFile | None = None,
    device: Device | None = None,
    decodes: bool = True,
    enter: Callable[[StartStep], None] = lambda step: None,
) -> Assembly[M]:
    """Load the model and size its pool; `eos_token_ids` are the tokeniser's, `config_file` the
    model's if it is read already, `device` None is the host. Without `decodes` no decode steps are
    captured: hardly any will come. `enter` hears what it is at.

    Raises CheckpointError for the model, SettingsError for limits that contradict each other or
    the device's memory.
    """
    config_file = config_file or read_json_file(settings.model / "config.json")
    config = read_config(settings.model, config_file, max_model_len=settings.max_model_len)
    ropes = "; ".join(map(str, config.ropes))
    log.info("context", extra={"tokens": config.max_context_tokens, "rope": ropes})
    dtype = _dtype(settings, config, config_file, on_gpu=device is not None)
    limits = _limits(settings, config, device, decodes=decodes)
    if device is not None:
        _bind(device, settings)
    model = _loaded(settings, config, dtype, progress, device, enter)
    enter("warm")
    layouts = model.config.kv_layouts(block_tokens=settings.block_tokens, dtype=dtype)
    (layout,) = layouts
    runner: TorchRunner | DeviceRunner
    if device is None:
        runner, pool_memory = _host_runner(settings, model, layout, eos_token_ids, memory)
    else:
        graphs = settings.cuda_graphs and decodes
        with take_turn(device.key):  # what another worker takes and gives back would be measured
            runner, pool_memory = _device_runner(
                settings, model, layout, eos_token_ids, memory, device, limits, graphs=graphs
            )
    return Assembly(
        runner=runner,
        config=model.config,
        layouts=layouts,
        windows=tuple(group.window for group in model.config.kv_groups),
        compat=compat_hash(layout, model_revision=model.config.revision),
        transfer_compat=transfer_compat(layout, model_revision=model.config.revision),
        limits=limits,
        eos_token_ids=frozenset(eos_token_ids),
        memory=pool_memory,
    )


def _dtype(
    settings: WorkerSettings, config: ModelConfig, config_file: JsonFile, *, on_gpu: bool
) -> Dtype:
    """Told with its reason, and aloud where digits are lost that nobody asked to lose."""
    chosen = choose_dtype(
        settings.dtype,
        stored=stored_dtype(settings.model, config_file.value),
        model_type=config.family.model_type,
        on_gpu=on_gpu,
    )
    told = {"dtype": chosen.dtype, "why": chosen.why}
    if chosen.loses:
        log.warning("dtype", extra={**told, "remedy": "--dtype float32 keeps every digit"})
    else:
        log.info("dtype", extra=told)
    return chosen.dtype


def _bind(device: Device, settings: WorkerSettings) -> None:
    if settings.kv_huge_pages:
        raise SettingsError(f"kv_huge_pages: True: the KV pool is on {device.name}, without any")
    device.bind()


def _limits(
    settings: WorkerSettings, config: ModelConfig, device: Device | None, *, decodes: bool
) -> EngineLimits:
    """Told with their reason."""
    chosen = default_limits(
        None if device is None else device.size, decodes=decodes,
        max_running=settings.max_running, token_budget=settings.token_budget,
    )  # fmt: skip
    told = {"max_running": chosen.max_running, "token_budget": chosen.token_budget}
    log.info("step limits", extra={**told, "why": chosen.why})
    try:
        return EngineLimits(
            max_running=chosen.max_running,
            max_waiting=settings.max_waiting,
            token_budget=chosen.token_budget,
            max_context_tokens=config.max_context_tokens,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _loaded(
    settings: WorkerSettings,
    config: ModelConfig,
    dtype: Dtype,
    progress: Progress,
    device: Device | None,
    enter: Callable[[StartStep], None],
) -> Model:
    load = partial(load_model, settings.model, config=config, dtype=dtype, progress=progress)
    enter("kernels")
    try:
        ops = _ops(dtype, device, batch_invariant=settings.batch_invariant)
    except NoKernels as error:
        raise SettingsError(
            f"batch_invariant: True: no kernels for it serve here ({error}); give the machine a C "
            "compiler and take dtype float32 or bfloat16, or turn it off"
        ) from error
    enter("load")
    if device is None:
        return load(ops=ops)
    with refused_when_full(
        device, setting=f"model: {str(settings.model)!r}", doing=f"weights in {dtype}",
        advice="take a smaller model, or a device that nobody else uses",
    ):  # fmt: skip
        return load(ops=ops, device=device.where)


def _ops(dtype: Dtype, device: Device | None, *, batch_invariant: bool) -> Ops:
    if device is None:
        return choose_ops(dtype=DTYPES[dtype], batch_invariant=batch_invariant)
    return ops_for(device, dtype=DTYPES[dtype], batch_invariant=batch_invariant)


def _host_runner(
    settings: WorkerSettings,
    model: Model,
    layout: KvLayout,
    eos_token_ids: Collection[int],
    memory: Memory[M],
) -> tuple[TorchRunner, M]:
    free_bytes = free_memory_bytes()
    num_blocks = num_pool_blocks(
        layout,
        max_context_tokens=model.config.max_context_tokens,
        free_bytes=free_bytes,
        kv_blocks=settings.kv_blocks,
        kv_bytes=settings.kv_bytes,
    )
    sized_by = "kv_blocks" if settings.kv_bytes is None else _sized_by(settings)
    asked = f"{sized_by}: {num_blocks} blocks of {layout.block_bytes} bytes"
    if num_blocks * layout.block_bytes > free_bytes:
        raise SettingsError(f"{asked}: {free_bytes} bytes are free")
    try:
        pool_memory, blocks = memory(layout, num_blocks)
        pool = KvPool(layout, num_blocks, blocks)
    except (OSError, OverflowError, MemoryError, ValueError) as error:
        raise SettingsError(f"{asked}: {error}") from error
    return TorchRunner(model, pool, eos_token_ids=eos_token_ids), pool_memory


def _device_runner(
    settings: WorkerSettings,
    model: Model,
    layout: KvLayout,
    eos_token_ids: Collection[int],
    memory: Memory[M],
    device: Device,
    limits: EngineLimits,
    *,
    graphs: bool,
) -> tuple[DeviceRunner, M]:
    """The pool takes what the largest step leaves, unless the settings say its size."""
    sampler, masker = token_sampler_for(device), token_masker_for(device)
    penaliser = score_penaliser_for(device)
    num_blocks = asked_blocks(layout, kv_blocks=settings.kv_blocks, kv_bytes=settings.kv_bytes)
    with refused_when_full(
        device, doing="the largest step", advice="lower either of them",
        setting=f"token_budget: {limits.token_budget}, max_running: {limits.max_running}",
    ):  # fmt: skip
        peak_bytes = largest_step_bytes(
            model, layout, device=device, sampler=sampler, masker=masker, penaliser=penaliser,
            limits=limits,
        )  # fmt: skip
    if num_blocks is None:
        num_blocks = _blocks_left(settings, layout, device, peak_bytes, graphs=graphs)
    asked = f"{num_blocks} blocks of {layout.block_bytes} bytes on {device.name}"
    try:
        pool_memory, blocks = memory(layout, num_blocks)
        pool = KvPool(layout, num_blocks, blocks)
    except (TransferError, ValueError) as error:
        raise SettingsError(f"{_sized_by(settings)}: {asked}: {error}") from error
    with refused_when_full(
        device, doing=f"a step beside {asked}", setting=f"max_running: {limits.max_running}",
        advice=f"lower it or {_sized_by(settings)}, or turn cuda_graphs off",
    ):  # fmt: skip
        runner = DeviceRunner(
            model, pool, device=device, sampler=sampler, masker=masker, penaliser=penaliser,
            limits=limits, eos_token_ids=eos_token_ids,
        )  # fmt: skip
        if graphs:
            _capture(runner, device)
            choose_mixed(runner, limits)
    return runner, pool_memory


def _blocks_left(
    settings: WorkerSettings, layout: KvLayout, device: Device, peak_bytes: int, *, graphs: bool
) -> int:
    return blocks_left(
        layout, device=device, peak_bytes=peak_bytes, share=settings.kv_memory_share,
        free_bytes=device.free_bytes(),  # what that step took is given back with it
        graph_bytes=GRAPH_BYTES if graphs else 0,
    )  # fmt: skip


def _capture(runner: DeviceRunner, device: Device) -> None:
    taken_bytes = runner.capture(limit_bytes=min(GRAPH_BYTES, device.free_bytes() // 2))
    taken = {"sizes": len(runner.captured_sizes), "bytes": taken_bytes}
    log.info("decode steps captured", extra=taken)


def _sized_by(settings: WorkerSettings) -> str:
    """The setting that a pool on a device has its size from."""
    if settings.kv_blocks is not None:
        return "kv_blocks"
    return "kv_memory_share" if settings.kv_bytes is None else "kv_bytes"
