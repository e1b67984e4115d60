"""Puts a worker together and runs it until it has drained.

Whatever is made here is closed here, in reverse. What an operator can change is raised as a
SettingsError, CheckpointError or StoreError.
"""

import logging
import os
from collections.abc import Callable, MutableSequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar, cast

from engine.assembly import StartStep, assemble
from engine.checkpoint.reader import Progress
from engine.kvcache.pool import Buffer
from engine.loop import Engine
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import open_device
from engine.sampling.grammar import Grammars
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.transport_names import chosen
from protocol.codec import WIRE_VERSION
from protocol.ids import WorkerId, new_epoch
from protocol.layout import KvLayout
from protocol.membership import Membership
from protocol.messages import Registration, Role
from protocol.presence import ComingPresence
from protocol.process.listening import bracketed
from protocol.process.logs import LoadProgress
from protocol.process.machine import host_name, usable_cores
from protocol.process.model_folder import resolve_model
from protocol.process.run import Shutdown, load
from protocol.process.settings import WorkerSettings
from protocol.text.packed_text import PackedText
from protocol.text.text_config import read_json_file
from protocol.text.tokenizer import Tokenizer
from worker.lifecycle import Lifecycle
from worker.observer import WorkerObserver
from worker.parts import LoadedModel, WorkerParts
from worker.reported.canaries import PeerCanaries
from worker.reported.start_phases import StartPhases
from worker.requests import RequestTable, Transfers
from worker.service import EngineService
from worker.startup import Endpoints

CALIBRATION_S = 0.3
"""Routers and Redis are met meanwhile; a request that comes sooner waits for it."""
S = TypeVar("S", bound=WorkerSettings)
log = logging.getLogger(__name__)


async def serve(
    role: Role,
    settings: S,
    worker: WorkerId,
    *,
    open_transfers: Callable[[WorkerParts[S]], Transfers],
    endpoints: Endpoints,
    coming: ComingPresence,
    shutdown: Shutdown,
) -> int:
    """Exit code of the process."""
    phases = endpoints.phases
    async with AsyncExitStack() as stack:
        phases.enter("fetch")
        folder = await load(partial(resolve_model, settings.model), shutdown)
        settings = settings.model_copy(update=folder.settings(served_name=settings.served_name))
        phases.enter("load")
        model = await load(partial(open_model, role, settings, phases), shutdown)
        stack.callback(model.memory.close)
        membership = Membership(endpoints.store, worker=worker, epoch=new_epoch())
        parts = _parts(settings, model, membership, endpoints, shutdown)
        phases.enter("kernels")  # those that copy and check KV
        transfers = open_transfers(parts)
        stack.callback(transfers.close)
        parts.engine.start()
        stack.callback(parts.engine.stop)
        lifecycle = Lifecycle(
            EngineService(parts, transfers),
            port=endpoints.port,
            text=model.text,
            membership=membership,
            metrics=endpoints.metrics,
            shutdown=shutdown,
            drain_s=settings.drain_s,
            canaries=PeerCanaries(endpoints.store, transfers.canaries, metrics=endpoints.metrics),
        )
        registration = _registration(
            role,
            parts,
            port=endpoints.port.port,
            kv_address=transfers.kv_address,
            revision=folder.revision or model.assembly.config.revision,
        )
        phases.end()
        await coming.end()
        await lifecycle.run(registration)
    return shutdown.exit_code


def open_model(
    role: Role, settings: WorkerSettings, phases: StartPhases | None = None
) -> LoadedModel:
    """What the settings name, loaded, with a pool of its own; the caller closes the memory.

    Only a decode worker decodes, and only into its pool do others copy along. Raises SettingsError,
    CheckpointError, TransferError when memory for the pool cannot be had.
    """
    config_file = read_json_file(settings.model / "config.json")
    text = PackedText.read(settings.model)
    tokenizer = Tokenizer.load(settings.model, config_file, max_model_len=settings.max_model_len)
    device = open_device(settings.device)
    transports = chosen(settings.transports, on_device=device is not None)
    assembly = assemble(
        settings,
        eos_token_ids=tokenizer.eos_token_ids,
        memory=partial(_pool, settings, device, helped=role == "decode"),
        progress=_progress(phases),
        config_file=config_file,
        device=device,
        decodes=role == "decode",
        enter=_unheard if phases is None else phases.enter,
    )
    return LoadedModel(text=text, tokenizer=tokenizer, assembly=assembly, transports=transports)


def _progress(phases: StartPhases | None) -> Progress:
    logged = LoadProgress(log)
    if phases is None:
        return logged

    def note(done: int, total: int) -> None:
        logged(done, total)
        phases.note_bytes(done, total)

    return note


def _unheard(step: StartStep) -> None:
    """Nobody wants to know."""


def _parts(
    settings: S,
    model: LoadedModel,
    membership: Membership,
    endpoints: Endpoints,
    shutdown: Shutdown,
) -> WorkerParts[S]:
    give_up, requests = partial(shutdown.ask, exit_code=1), RequestTable(endpoints.port.send)
    observer = WorkerObserver(
        requests=requests, metrics=endpoints.metrics, record=membership.record, give_up=give_up
    )
    return WorkerParts(
        settings=settings,
        worker=membership.worker,
        epoch=membership.epoch,
        model=model,
        engine=_engine(model, observer),
        requests=requests,
        metrics=endpoints.metrics,
        give_up=give_up,
    )


def _pool(
    settings: WorkerSettings,
    device: Device | None,
    layout: KvLayout,
    num_blocks: int,
    *,
    helped: bool,
) -> tuple[BlockMemory | DeviceMemory, Buffer]:
    """A pool of zeros, and all its bytes, shared. Raises TransferError when a GPU has no room."""
    block_bytes = layout.block_bytes
    if device is not None:
        from kvtransfer.memory.cuda_pool import cuda_pool

        return cuda_pool(device.where.index, num_blocks=num_blocks, block_bytes=block_bytes)
    pool = BlockMemory.create(
        num_blocks=num_blocks, block_bytes=block_bytes, helped=helped, huge=settings.kv_huge_pages
    )
    return pool, pool.blocks


def _engine(model: LoadedModel, observer: WorkerObserver) -> Engine:
    assembly, num_threads = model.assembly, len(usable_cores()) // 2
    return Engine(
        runner=assembly.runner,
        limits=assembly.limits,
        eos_token_ids=assembly.eos_token_ids,
        compat=assembly.compat,
        generations=cast(MutableSequence[int], model.memory.generations),
        observer=observer,
        windows=assembly.windows,
        dynamic_after=assembly.config.dynamic_after,
        grammars=Grammars(model.tokenizer, num_threads=num_threads),
        calibration_s=CALIBRATION_S,
    )


def _registration(
    role: Role, parts: WorkerParts[S], *, port: int, kv_address: str, revision: str
) -> Registration:
    settings, assembly = parts.settings, parts.model.assembly
    return Registration(
        worker=parts.worker,
        epoch=parts.epoch,
        role=role,
        pid=os.getpid(),
        host=host_name(),
        address=f"tcp://{bracketed(settings.advertise or settings.host)}:{port}",
        model=settings.served_name,
        compat=assembly.compat,
        layout=assembly.layout,
        num_blocks=assembly.runner.num_blocks,
        max_context_tokens=parts.engine.max_context_tokens,
        transports=parts.model.transports,
        dynamic_after=assembly.config.dynamic_after,
        kv_address=kv_address,
        max_step_tokens=assembly.limits.token_budget,
        is_prefix_closed=parts.engine.is_prefix_closed,
        revision=revision,
        text=parts.model.text.digest,
        wire=WIRE_VERSION,
    )
