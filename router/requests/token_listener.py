"""Who is told what one request's workers say, in the turn of the loop in which they say it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from protocol.messages import Token
from router.fast_path.socket_events import SocketEvents
from router.requests.events import Read, Route


class TokenListener(Protocol):
    """Told `placed` once, first; then what is read of the prompt, if that is asked for; then tokens
    with the indices 0, 1, 2, ...: never a gap, never one twice. Returns soon, awaits nothing. What
    it raises ends the request."""

    def placed(self, route: Route) -> None:
        """The first route. A retry does not repeat this; the trace has all attempts."""

    def read(self, read: Read) -> None:
        """Something that was read of the prompt."""

    def token(self, token: Token) -> None: ...


class PlainListener(ABC):
    """A `TokenListener` whose tokens, once it was told one, tell nothing but their text: they may
    go past it, to its socket."""

    __slots__ = ()

    @abstractmethod
    def lend_socket(self, give_back: Callable[[], None]) -> SocketEvents | None:
        """None: not now. `give_back` is called before anything else is written there."""

    @abstractmethod
    def note_passed(self, num_tokens: int, rest: bytes) -> None:
        """So many went past it; `rest`, of the last event, did not fit into the socket. What it
        raises ends the request."""
