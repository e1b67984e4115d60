"""That an API key may not ask for more, for now or at all. Pure."""

from typing import Literal

from protocol.errors import BatonError

LimitKind = Literal["requests", "tokens"]


class LimitReached(BatonError):
    """429. `retry_after_s` None: it is more than a minute allows, whenever it comes."""

    retryable = True

    def __init__(
        self, kind: LimitKind, *, limit: int, num: int, retry_after_s: float | None
    ) -> None:
        super().__init__(f"{num} {kind} beyond the limit of {limit} a minute")
        self.kind: LimitKind = kind
        self.limit = limit
        self.num = num
        self.retry_after_s = retry_after_s
