"""The service of a worker on an engine that only remembers, moved by hand: no thread, no socket."""

from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest.mock import Mock, create_autospec

from support.checkpoints import byte_level_tokenizer

from engine.loop import Engine
from protocol.ids import RouterId
from protocol.messages import ToRouter
from protocol.process.metrics import WorkerMetrics
from protocol.text.tokenizer import Tokenizer
from worker.service import EngineService

ROUTER = RouterId("router")
VOCAB_SIZE = 500
Service = TypeVar("Service", bound=EngineService[Any])


@dataclass
class Story:
    """What was told to the router, and whatever else a test adds, in order."""

    told: list[object] = field(default_factory=list)

    def send(self, router: RouterId, message: ToRouter) -> None:
        self.told.append(message)


def make_service(
    kind: type[Service], story: Story, *, metrics: WorkerMetrics | None = None
) -> Service:
    raw = byte_level_tokenizer()
    return kind(
        tokenizer=Tokenizer(
            raw,
            chat_template=None,
            eos_token_ids=(),
            vocab_size=VOCAB_SIZE,
            max_context_tokens=64,
        ),
        send=story.send,
        record=lambda changes: None,
        give_up=lambda why: None,
        metrics=metrics or WorkerMetrics(),
    )


def mute_engine() -> Mock:
    engine: Mock = create_autospec(Engine, instance=True)
    return engine
