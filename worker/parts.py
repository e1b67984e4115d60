"""What a worker consists of, but for what its role adds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.assembly import Assembly
from engine.loop import Engine
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from protocol.ids import Epoch, WorkerId
from protocol.process.metrics import WorkerMetrics
from protocol.process.settings import WorkerSettings
from protocol.text.packed_text import PackedText
from protocol.text.tokenizer import Tokenizer
from worker.requests import RequestTable

S_co = TypeVar("S_co", bound=WorkerSettings, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What takes long to make."""

    text: PackedText
    """What the tokeniser was made of, for routers."""
    tokenizer: Tokenizer
    assembly: Assembly[BlockMemory | DeviceMemory]
    transports: tuple[str, ...]
    """That can move its KV blocks, best first."""

    @property
    def memory(self) -> BlockMemory | DeviceMemory:
        """Of all KV blocks; the engine computes in it."""
        return self.assembly.memory


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts(Generic[S_co]):
    settings: S_co
    worker: WorkerId
    epoch: Epoch
    model: LoadedModel
    engine: Engine
    """Not started before the role's transfers are there."""
    requests: RequestTable
    metrics: WorkerMetrics
    give_up: Callable[[str], None]
    """Told, from any thread, why the worker is of no use any more."""
