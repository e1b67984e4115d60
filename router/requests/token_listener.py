"""Who is told what one request's workers say, in the turn of the loop in which they say it."""

from typing import Protocol

from protocol.messages import Token
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
