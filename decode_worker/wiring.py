"""Puts a decode worker together and runs it until it has drained.

Whatever is made here is closed here, in reverse. What an operator can change is raised as a
SettingsError, CheckpointError or StoreError.
"""

import logging
import os
from collections.abc import MutableSequence
from contextlib import AsyncExitStack
from functools import partial
from typing import cast

from decode_worker.service import DecodeService
from decode_worker.settings import DecodeSettings
from decode_worker.tamper import corrupt_first
from engine.assembly import Assembly, assemble
from engine.kvcache.pool import Buffer
from engine.loop import Engine
from engine.runner.gpu.opening import open_device
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.sink.sink import Sink
from kvtransfer.transport_names import chosen
from protocol.channel import RouterPort
from protocol.ids import Epoch, WorkerId, new_epoch
from protocol.layout import KvLayout
from protocol.membership import Membership
from protocol.messages import Registration
from protocol.process.logs import LoadProgress
from protocol.process.machine import host_name
from protocol.process.run import Stop, load
from protocol.text.tokenizer import Tokenizer
from worker.life import Life
from worker.pool import make_pool
from worker.startup import Doors

log = logging.getLogger(__name__)


async def serve(settings: DecodeSettings, worker: WorkerId, *, doors: Doors, stop: Stop) -> int:
    """Exit code of the process."""
    async with AsyncExitStack() as stack:
        tokenizer, parts, memory = await load(lambda: _load(settings), stop)
        stack.callback(memory.close)
        transports = chosen(settings.transports, on_device=isinstance(memory, DeviceMemory))

        epoch = new_epoch()
        give_up = partial(stop.ask, exit_code=1)
        service = DecodeService(
            tokenizer=tokenizer,
            send=doors.port.send,
            record=lambda changes: membership.record(changes),
            give_up=give_up,
            metrics=doors.metrics,
        )
        sink = Sink(
            memory=memory,
            layout=parts.layout,
            worker=worker,
            compat=parts.transfer_compat,
            transports=transports,
            allow_fallback=settings.allow_fallback,
            tcp_lanes=settings.tcp_lanes,
            lease_ttl_s=settings.lease_ttl_s,
            tamper=corrupt_first(settings.tamper_blocks),
            spin_s=settings.kv_spin_us / 1e6,
            on_quiet=service.quiet,
            on_event=service.noticed,
            on_broken=give_up,
        )
        engine = Engine(
            runner=parts.runner,
            limits=parts.limits,
            eos_token_ids=parts.eos_token_ids,
            compat=parts.compat,
            generations=cast(MutableSequence[int], memory.generations),
            observer=service,
            windows=parts.windows,
        )
        service.attach(epoch=epoch, engine=engine, sink=sink, layout=parts.layout)
        stack.callback(sink.close)
        engine.start()
        stack.callback(engine.stop)
        registration = _registration(settings, worker, epoch, parts, engine, doors.port, transports)
        membership = Membership(doors.store, registration=registration)
        life = Life(
            service,
            port=doors.port,
            membership=membership,
            metrics=doors.metrics,
            stop=stop,
            drain_s=settings.drain_s,
        )
        await life.run(registration)
    return stop.exit_code


def _load(settings: DecodeSettings) -> tuple[Tokenizer, Assembly, BlockMemory | DeviceMemory]:
    tokenizer = Tokenizer.load(settings.model)
    device = open_device(settings.device)
    chosen(settings.transports, on_device=device is not None)  # refused before the weights are read
    made: list[BlockMemory | DeviceMemory] = []

    def memory(layout: KvLayout, num_blocks: int) -> Buffer:
        pool = make_pool(
            None if device is None else device.where.index, num_blocks=num_blocks,
            block_bytes=layout.block_bytes, helped=True, huge=settings.kv_huge_pages,
        )  # fmt: skip
        made.append(pool.memory)
        blocks: Buffer = pool.blocks
        return blocks

    parts = assemble(
        settings,
        eos_token_ids=tokenizer.eos_token_ids,
        memory=memory,
        progress=LoadProgress(log),
        device=device,
    )
    return tokenizer, parts, made[0]


def _registration(
    settings: DecodeSettings,
    worker: WorkerId,
    epoch: Epoch,
    parts: Assembly,
    engine: Engine,
    port: RouterPort,
    transports: tuple[str, ...],
) -> Registration:
    return Registration(
        worker=worker,
        epoch=epoch,
        role="decode",
        pid=os.getpid(),
        host=host_name(),
        address=f"tcp://{settings.advertise or settings.host}:{port.port}",
        model=settings.served_name or settings.model.resolve().name,
        compat=parts.compat,
        layout=parts.layout,
        num_blocks=parts.runner.num_blocks,
        max_context_tokens=engine.max_context_tokens,
        transports=transports,
    )
