"""Puts an engine's parts together from a checkpoint and memory that the worker provides.

Called by both workers, in a thread: loading takes long.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from engine.config import ModelConfig, read_config
from engine.device.base import Device
from engine.device.choosing import chooser_for
from engine.device.opening import ops_for
from engine.device.runner import DeviceRunner
from engine.device.sizing import GRAPH_BYTES, blocks_left, largest_step_bytes
from engine.kvgroups import Window
from engine.kvpool import Buffer, KvPool
from engine.limits import EngineLimits
from engine.model import DTYPES, Model, Progress, load_model
from engine.torch_runner import TorchRunner
from protocol.errors import SettingsError, TransferError
from protocol.layout import KvLayout, compat_hash, transfer_compat
from protocol.machine import free_memory_bytes
from protocol.settings import WorkerSettings

log = logging.getLogger(__name__)

FULL_CONTEXTS = 16
MAX_DEFAULT_BYTES = 1 << 30
FREE_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    runner: TorchRunner | DeviceRunner
    config: ModelConfig
    layout: KvLayout
    windows: tuple[Window, ...]
    """Of each KV group."""
    compat: str
    """Workers with the same may be paired, and their blocks' hashes compared."""
    transfer_compat: str
    """Blocks can be fetched between those that have the same."""
    limits: EngineLimits
    eos_token_ids: frozenset[int]
    """Every token that ends a text, whichever file of the checkpoint names it."""


def num_pool_blocks(
    layout: KvLayout,
    *,
    max_context_tokens: int,
    free_bytes: int,
    kv_blocks: int | None = None,
    kv_bytes: int | None = None,
) -> int:
    """Blocks of the pool: those asked for, or room for 16 full contexts within a quarter of the
    free memory and 1 GiB; at least two of each KV group."""
    if kv_blocks is not None:
        return kv_blocks
    if kv_bytes is None:
        wanted = FULL_CONTEXTS * layout.num_blocks(max_context_tokens) * layout.block_bytes
        kv_bytes = min(wanted, free_bytes // FREE_SHARE, MAX_DEFAULT_BYTES)
    return max(2 * layout.num_groups, kv_bytes // layout.block_bytes)


Memory = Callable[[KvLayout, int], Buffer]
"""Gives the bytes for so many blocks of a layout, on the device that the engine computes on."""


def assemble(
    settings: WorkerSettings,
    *,
    eos_token_ids: Collection[int],
    memory: Memory,
    progress: Progress,
    device: Device | None = None,
) -> Assembly:
    """Load the model and size its pool; `eos_token_ids` are those the tokeniser knows, `device`
    None is the host.

    Raises CheckpointError for the model, SettingsError for limits that contradict each other or
    the device's memory.
    """
    limits = _limits(settings)
    if device is not None:
        if settings.kv_huge_pages:
            raise SettingsError(
                f"kv_huge_pages: True: the KV pool is on {device.name}, without any"
            )
        device.bind()
    model = load_model(
        settings.model,
        dtype=settings.dtype,
        progress=progress,
        ops=None if device is None else ops_for(device, dtype=DTYPES[settings.dtype]),
        device="cpu" if device is None else device.where,
    )
    layout = model.config.kv_layout(block_tokens=settings.block_tokens, dtype=settings.dtype)
    enders = frozenset({*eos_token_ids, *model.config.eos_token_ids})
    runner: TorchRunner | DeviceRunner
    if device is None:
        runner = _host_runner(settings, model, layout, enders, memory)
    else:
        runner = _device_runner(settings, model, layout, enders, memory, device, limits)
    return Assembly(
        runner=runner,
        config=model.config,
        layout=layout,
        windows=tuple(group.window for group in model.config.kv_groups),
        compat=compat_hash(layout, model_revision=model.config.revision),
        transfer_compat=transfer_compat(layout, model_revision=model.config.revision),
        limits=limits,
        eos_token_ids=enders,
    )


def _limits(settings: WorkerSettings) -> EngineLimits:
    try:
        return EngineLimits(
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            token_budget=settings.token_budget,
            max_context_tokens=read_config(settings.model).max_context_tokens,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _check_groups(num_blocks: int, layout: KvLayout) -> None:
    if num_blocks < layout.num_groups:
        raise SettingsError(
            f"kv_blocks: is {num_blocks}; a token needs one in each of {layout.num_groups} groups"
        )


def _host_runner(
    settings: WorkerSettings,
    model: Model,
    layout: KvLayout,
    enders: Collection[int],
    memory: Memory,
) -> TorchRunner:
    num_blocks = num_pool_blocks(
        layout,
        max_context_tokens=model.config.max_context_tokens,
        free_bytes=free_memory_bytes(),
        kv_blocks=settings.kv_blocks,
        kv_bytes=settings.kv_bytes,
    )
    _check_groups(num_blocks, layout)
    pool = KvPool(layout, num_blocks, memory(layout, num_blocks))
    return TorchRunner(model, pool, eos_token_ids=enders)


def _device_runner(
    settings: WorkerSettings,
    model: Model,
    layout: KvLayout,
    enders: Collection[int],
    memory: Memory,
    device: Device,
    limits: EngineLimits,
) -> DeviceRunner:
    """The pool takes what the largest step leaves, unless the settings say its size."""
    choose = chooser_for(device)
    peak_bytes = largest_step_bytes(model, layout, device=device, choose=choose, limits=limits)
    free_bytes = device.free_bytes()  # what that step took is given back with it
    if settings.kv_blocks is not None or settings.kv_bytes is not None:
        num_blocks = settings.kv_blocks or max(2, (settings.kv_bytes or 0) // layout.block_bytes)
    else:
        num_blocks = blocks_left(
            layout, device=device, free_bytes=free_bytes, peak_bytes=peak_bytes,
            share=settings.kv_memory_share,
        )  # fmt: skip
    _check_groups(num_blocks, layout)
    try:
        pool = KvPool(layout, num_blocks, memory(layout, num_blocks))
    except (TransferError, ValueError) as error:
        asked = f"{num_blocks} blocks of {layout.block_bytes} bytes"
        raise SettingsError(f"kv_blocks: {asked} on {device.name}: {error}") from error
    runner = DeviceRunner(
        model, pool, device=device, choose=choose, limits=limits, eos_token_ids=enders
    )
    if settings.cuda_graphs:
        taken_bytes = runner.capture(limit_bytes=min(GRAPH_BYTES, device.free_bytes() // 2))
        log.info(
            "decode steps captured",
            extra={"sizes": len(runner.captured_sizes), "bytes": taken_bytes},
        )
    return runner
