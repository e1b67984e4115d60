"""Puts an engine's parts together from a checkpoint and memory that the worker provides.

Called by the `__main__` of both workers, in a thread: loading takes long.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from engine.config import ModelConfig, read_config
from engine.kvgroups import Window
from engine.kvpool import KvPool
from engine.limits import EngineLimits
from engine.model import Progress, load_model
from engine.torch_runner import TorchRunner
from protocol.errors import SettingsError
from protocol.layout import KvLayout, compat_hash, transfer_compat
from protocol.machine import free_memory_bytes
from protocol.settings import WorkerSettings

FULL_CONTEXTS = 16
MAX_DEFAULT_BYTES = 1 << 30
FREE_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    runner: TorchRunner
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


def assemble(
    settings: WorkerSettings,
    *,
    eos_token_ids: Collection[int],
    memory: Callable[[KvLayout, int], memoryview],
    progress: Progress,
) -> Assembly:
    """Load the model and size its pool; `eos_token_ids` are those the tokeniser knows, `memory`
    gives the bytes for so many blocks of a layout.

    Raises CheckpointError for the model, SettingsError for limits that contradict each other.
    """
    config_tokens = read_config(settings.model).max_context_tokens
    try:
        limits = EngineLimits(
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            token_budget=settings.token_budget,
            max_context_tokens=config_tokens,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error
    model = load_model(settings.model, dtype=settings.dtype, progress=progress)
    layout = model.config.kv_layout(block_tokens=settings.block_tokens, dtype=settings.dtype)
    num_blocks = num_pool_blocks(
        layout,
        max_context_tokens=config_tokens,
        free_bytes=free_memory_bytes(),
        kv_blocks=settings.kv_blocks,
        kv_bytes=settings.kv_bytes,
    )
    if num_blocks < layout.num_groups:
        raise SettingsError(
            f"kv_blocks: is {num_blocks}; a token needs one in each of {layout.num_groups} groups"
        )
    pool = KvPool(layout, num_blocks, memory(layout, num_blocks))
    enders = frozenset({*eos_token_ids, *model.config.eos_token_ids})
    return Assembly(
        runner=TorchRunner(model, pool, eos_token_ids=enders),
        config=model.config,
        layout=layout,
        windows=tuple(group.window for group in model.config.kv_groups),
        compat=compat_hash(layout, model_revision=model.config.revision),
        transfer_compat=transfer_compat(layout, model_revision=model.config.revision),
        limits=limits,
        eos_token_ids=enders,
    )
