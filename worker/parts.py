"""What a worker consists of: what both roles have alike, and how they see what they do not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.assembly import Assembly
from engine.commands import Inbox
from engine.sequence import Mode
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from protocol.ids import Epoch, WorkerId
from protocol.messages import Decode, Prefill
from protocol.process.metrics import WorkerMetrics
from protocol.process.settings import WorkerSettings
from protocol.text.tokenizer import Tokenizer
from worker.requests import Job, Key, RequestEnding, RequestTable
from worker.transport_uses import TransportUses

S_co = TypeVar("S_co", bound=WorkerSettings, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts(Generic[S_co]):
    settings: S_co
    worker: WorkerId
    epoch: Epoch
    tokenizer: Tokenizer
    assembly: Assembly
    memory: BlockMemory | DeviceMemory
    """Of all KV blocks; the engine computes in it."""
    transports: tuple[str, ...]
    """That can move them, best first."""
    inbox: Inbox
    """Of the engine, which is made last: what it is told before that waits here."""
    requests: RequestTable
    metrics: WorkerMetrics
    give_up: Callable[[str], None]
    """Told, from any thread, why the worker is of no use any more."""


class Transfers(Protocol):
    """What brings KV to a worker's requests or lends theirs. The engine's thread calls `admitted`,
    `computed` and `settled`, the event loop the rest; nothing but `close` may block."""

    @property
    def uses(self) -> TransportUses: ...

    @property
    def bytes_per_s(self) -> float:
        """Of KV fetched, while bytes flowed; 0.0 until measured."""

    def mode_of(self, message: Prefill | Decode) -> Mode:
        """How the engine runs it. ValueError when this role cannot do what it says."""

    def hold_ticket(self, job: Job) -> None:
        """The job is accepted: keep alive the KV that waits for it elsewhere."""

    def settle_job(self, job: Job, ending: RequestEnding) -> None:
        """The job has its ending: finish, fail, cancel or drop what moves its KV. Any thread."""

    def abort_request(self, key: Key) -> None:
        """KV that still moves for this request, its job ended or not, is not wanted any more."""

    def drop_request(self, message: Prefill | Decode) -> None:
        """It is not accepted: whoever holds KV for it may let it go."""

    def moving(self) -> list[Key]:
        """Requests whose KV is read or written by others."""

    def is_idle(self) -> bool:
        """Nobody else reads or writes our blocks."""

    def admitted(
        self, job: Job, block_table: tuple[int, ...], num_cached_tokens: int, queued_s: float
    ) -> None:
        """As `engine.observer.EngineObserver.admitted`."""

    def computed(self, job: Job, num_tokens: int) -> None:
        """As `engine.observer.EngineObserver.computed`."""

    def settled(self) -> None:
        """All that an engine step had to say has been told to the routers."""

    def close(self) -> None:
        """Leave no thread or socket; nobody reads or writes our blocks any more."""
