"""A decode worker's service, engine and transfers on a real model, without its sockets to routers:
what is told to a router is remembered."""

from collections.abc import Iterable, Iterator, MutableSequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from support.eventually import eventually
from support.services import ROUTER, Story

from decode_worker.settings import DecodeSettings
from decode_worker.transfers import open_transfers
from engine.loop import Engine
from engine.sampling.grammar import Grammars
from protocol.codec import to_worker
from protocol.ids import RequestId, WorkerId, new_epoch
from protocol.messages import Aborted, Decode, Failed, Finished, Sampling, Step
from protocol.process.metrics import WorkerMetrics
from protocol.text.tokenizer import Tokenizer
from worker.observer import WorkerObserver
from worker.parts import WorkerParts
from worker.requests import RequestTable
from worker.service import EngineService
from worker.serving import open_model

Ending = Finished | Failed | Aborted


@dataclass
class LiveService:
    service: EngineService
    story: Story
    tokenizer: Tokenizer
    broken: list[str] = field(default_factory=list)
    """Why the engine gave up."""

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def ask(self, request: str, token_ids: tuple[int, ...], rule: Sampling, **more: Any) -> None:
        """As the message arrives over the wire."""
        fields = {"attempt": 0, "generated": (), "salt": "", "deadline_s": 60.0, "ticket": None}
        message = Decode(
            request=RequestId(request), token_ids=token_ids, sampling=rule, **{**fields, **more}
        )  # fmt: skip
        arrived = to_worker.decode(to_worker.encode(message))
        assert isinstance(arrived, Decode)
        self.service.accept_request(ROUTER, arrived)

    def endings(self) -> dict[RequestId, list[Ending]]:
        told: dict[RequestId, list[Ending]] = {}
        for message in list(self.story.told):
            if isinstance(message, Ending):
                told.setdefault(message.request, []).append(message)
        return told

    def wait_ended(self, requests: Iterable[RequestId], *, within_s: float = 60.0) -> None:
        left, seen = set(requests), 0

        def all_ended() -> bool:
            nonlocal seen
            told = self.story.told[seen:]
            seen += len(told)
            left.difference_update(each.request for each in told if isinstance(each, Ending))
            return not left

        eventually(all_ended, what="all requests have ended", within_s=within_s)

    def tokens(self, request: str) -> list[int]:
        return self.all_tokens().get(RequestId(request), [])

    def all_tokens(self) -> dict[RequestId, list[int]]:
        tokens: dict[RequestId, list[int]] = {}
        for message in list(self.story.told):
            for emit in message.emits if isinstance(message, Step) else ():
                tokens.setdefault(emit.request, []).append(emit.token_id)
        return tokens

    def is_whole(self) -> bool:
        """Every block is back."""
        blocks = self.service.beat("ready").blocks
        return self.service.is_idle() and blocks.free + blocks.cached == blocks.total


@contextmanager
def live_service(checkpoint: Path, **more: Any) -> Iterator[LiveService]:
    values = {"dtype": "float32", "block_tokens": 8, "kv_blocks": 96, "device": "cpu", **more}
    settings = DecodeSettings.model_validate(
        {"model": checkpoint, "redis": "redis://unused", **values}
    )
    model, metrics, story = open_model("decode", settings), WorkerMetrics(), Story()
    requests, assembly = RequestTable(story.send), model.assembly
    broken: list[str] = []
    observer = WorkerObserver(
        requests=requests, metrics=metrics, record=lambda changes: None, give_up=broken.append
    )
    engine = Engine(
        runner=assembly.runner, limits=assembly.limits, eos_token_ids=assembly.eos_token_ids,
        compat=assembly.compat, observer=observer, check=True,
        generations=cast(MutableSequence[int], model.memory.generations),
        dynamic_after=assembly.config.dynamic_after,
        grammars=Grammars(model.tokenizer, num_threads=1),
    )  # fmt: skip
    parts = WorkerParts(
        settings=settings, worker=WorkerId("decode-0"), epoch=new_epoch(), model=model,
        engine=engine, requests=requests, metrics=metrics, give_up=broken.append,
    )  # fmt: skip
    with closing(model.memory), closing(open_transfers(parts)) as transfers:
        engine.start()
        try:
            service = EngineService(parts, transfers)
            yield LiveService(service, story, model.tokenizer, broken)
        finally:
            engine.stop()
