"""A prefill and a decode worker's engines and services in one process, their pools on devices.

Everything is the workers' own but the sockets to the router: what is told to it is remembered.
"""

from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from support.eventually import eventually
from support.fake_driver import FakeDriver
from support.services import ROUTER, Story

from decode_worker.settings import DecodeSettings
from decode_worker.transfers import open_transfers as fetching
from engine.assembly import Assembly, assemble
from engine.kvcache.pool import Buffer
from engine.loop import Engine
from engine.runner.gpu.device import Device
from engine.sampling.grammar import Grammars
from kvtransfer.device.cuda import CudaDriver
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from prefill_worker.settings import PrefillSettings
from prefill_worker.transfers import open_transfers as lending
from protocol.ids import RequestId, WorkerId, new_epoch
from protocol.layout import KvLayout
from protocol.messages import (
    Decode,
    Emit,
    Failed,
    Finished,
    Landed,
    Prefill,
    Sampling,
    Started,
    Step,
)
from protocol.process.metrics import WorkerMetrics
from protocol.process.settings import WorkerSettings
from protocol.text.packed_text import PackedText
from protocol.text.tokenizer import Tokenizer
from worker.observer import WorkerObserver
from worker.parts import LoadedModel, WorkerParts
from worker.requests import RequestTable, Transfers
from worker.service import EngineService

TRANSPORTS = ("cuda_ipc",)
DEADLINE_S = 100.0
"""On a GPU the first steps compile kernels."""
Driver = FakeDriver | CudaDriver
Pool = BlockMemory | DeviceMemory
S = TypeVar("S", bound=WorkerSettings)
T = TypeVar("T", Started, Landed, Finished, Failed)


@dataclass
class Pair:
    """One of each; `prefill_memory` is the pool that is lent from."""

    prefill: EngineService
    decode: EngineService
    prefill_told: Story
    decode_told: Story
    prefill_memory: Pool
    decode_memory: Pool
    engines: Sequence[Engine]
    """Of prefill, then decode."""
    tokenizer: Tokenizer

    def apart(self, name: str, prompt: Sequence[int], rule: Sampling) -> list[Emit]:
        """Prefilled by one, decoded by the other."""
        return self.all_apart({name: prompt}, rule)[name]

    def all_apart(
        self, prompts: Mapping[str, Sequence[int]], rule: Sampling
    ) -> dict[str, list[Emit]]:
        """All at once."""
        for name, prompt in prompts.items():
            self.prefill.accept_request(
                ROUTER,
                Prefill(
                    request=RequestId(name), attempt=0, token_ids=tuple(prompt), generated=(),
                    sampling=rule, salt="", deadline_s=DEADLINE_S,
                ),
            )  # fmt: skip
        for name, prompt in prompts.items():
            started = eventually(lambda name=name: self.started(name), within_s=DEADLINE_S)  # type: ignore[misc]
            self._decode(RequestId(name), prompt, rule, started)
        return {
            name: emits(self.prefill_told, RequestId(name)) + self._said(name) for name in prompts
        }

    def together(self, name: str, prompt: Sequence[int], rule: Sampling) -> list[Emit]:
        """All on the decode worker, which finds nothing of it in its cache: the salt is another."""
        self._decode(RequestId(name), prompt, rule, None, salt=name)
        return self._said(name)

    def landed(self, name: str) -> Landed | None:
        return _of(Landed, self.decode_told, RequestId(name))

    def started(self, name: str) -> Started | None:
        return _of(Started, self.prefill_told, RequestId(name))

    def _decode(
        self,
        request: RequestId,
        prompt: Sequence[int],
        rule: Sampling,
        started: Started | None,
        *,
        salt: str = "",
    ) -> None:
        self.decode.accept_request(
            ROUTER,
            Decode(
                request=request, attempt=0, token_ids=tuple(prompt), generated=(), sampling=rule,
                salt=salt, deadline_s=DEADLINE_S, ticket=started.ticket if started else None,
            ),
        )  # fmt: skip

    def _said(self, name: str) -> list[Emit]:
        """By the decode worker, once it has ended well."""
        request = RequestId(name)
        eventually(
            lambda: (
                _of(Finished, self.decode_told, request) or _of(Failed, self.decode_told, request)
            ),
            within_s=DEADLINE_S,
        )
        failed = _of(Failed, self.decode_told, request)
        assert failed is None, failed
        return emits(self.decode_told, request)


def emits(story: Story, request: RequestId) -> list[Emit]:
    return [
        emit
        for told in list(story.told)
        if isinstance(told, Step)
        for emit in told.emits
        if emit.request == request
    ]


@contextmanager
def device_pair(
    settings: WorkerSettings, *, drivers: tuple[Driver | None, Driver | None],
    devices: tuple[Device | None, Device | None], transports: tuple[str, ...] = TRANSPORTS,
) -> Iterator[Pair]:  # fmt: skip
    """Of prefill, then decode; both over the same model. None: on the host."""
    tokenizer = Tokenizer.load(settings.model)
    stories = (Story(), Story())
    with ExitStack() as stack:
        parts = []
        for driver, device in zip(drivers, devices, strict=True):
            part = _assembled(settings, tokenizer, driver, device)
            stack.callback(part.memory.close)
            parts.append(part)
        given = settings.model_dump()
        prefill, lender = stack.enter_context(
            _serving(lending, PrefillSettings(**given), parts[0], stories[0], transports)
        )
        only = DecodeSettings(**given, allow_fallback=False)
        decode, borrower = stack.enter_context(
            _serving(fetching, only, parts[1], stories[1], transports)
        )
        yield Pair(
            prefill, decode, *stories, parts[0].memory, parts[1].memory, (lender, borrower),
            tokenizer,
        )  # fmt: skip


@contextmanager
def _serving(
    open_transfers: Callable[[WorkerParts[S]], Transfers],
    settings: S,
    part: Assembly[Pool],
    story: Story,
    transports: tuple[str, ...],
) -> Iterator[tuple[EngineService, Engine]]:
    requests, metrics = RequestTable(story.send), WorkerMetrics()
    observer = WorkerObserver(
        requests=requests, metrics=metrics, record=lambda changes: None, give_up=print
    )
    engine = Engine(
        runner=part.runner, limits=part.limits, eos_token_ids=part.eos_token_ids,
        compat=part.compat, observer=observer,
        generations=cast(MutableSequence[int], part.memory.generations),
        dynamic_after=part.config.dynamic_after,
        grammars=Grammars(tokenizer := Tokenizer.load(settings.model), num_threads=1),
    )  # fmt: skip
    model = LoadedModel(
        text=PackedText("text", b""), tokenizer=tokenizer, assembly=part,
        transports=transports,
    )  # fmt: skip
    parts = WorkerParts(
        settings=settings, worker=WorkerId("worker-0"), epoch=new_epoch(), model=model,
        engine=engine, requests=requests, metrics=metrics, give_up=print,
    )  # fmt: skip
    with closing(open_transfers(parts)) as transfers:
        engine.start()
        try:
            yield EngineService(parts, transfers), engine
        finally:
            engine.stop()


def _assembled(
    settings: WorkerSettings, tokenizer: Tokenizer, driver: Driver | None, device: Device | None
) -> Assembly[Pool]:
    def memory(layout: KvLayout, num_blocks: int) -> tuple[Pool, Buffer]:
        if driver is None:
            host = BlockMemory.create(num_blocks=num_blocks, block_bytes=layout.block_bytes)
            return host, host.blocks
        pool = DeviceMemory(driver, num_blocks=num_blocks, block_bytes=layout.block_bytes)
        return pool, driver.tensor(pool.span)

    return assemble(
        settings,
        eos_token_ids=tokenizer.eos_token_ids,
        memory=memory,
        progress=lambda done, total: None,
        device=device,
    )


def settings_for(path: Path, **more: object) -> WorkerSettings:
    """Small steps, so that longer prompts are computed in chunks."""
    values = {"dtype": "float32", "block_tokens": 8, "token_budget": 24, "max_running": 4}
    return WorkerSettings.model_validate({"model": path, "kv_blocks": 96, **values, **more})


def _of(kind: type[T], story: Story, request: RequestId) -> T | None:
    """What was told of this kind about a request; None if nothing."""
    for told in list(story.told):
        if isinstance(told, kind) and told.request == request:
            return told
    return None
