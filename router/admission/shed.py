"""Who is sent away from the queue, why, and when to come back."""

from typing import Literal

from protocol.errors import BatonError

ShedReason = Literal["full", "share", "wait", "deadline"]
"""`full`: of all that wait it was the first to go. `share`: its tenant has its part of the queue.
`wait`: longer than anybody is to wait. `deadline`: longer than the request itself has."""


class QueueShed(BatonError):
    """429 for a tenant that has its part of the queue, else 503; before the first byte."""

    retryable = True

    def __init__(self, message: str, *, why: ShedReason, retry_after_s: float) -> None:
        super().__init__(message)
        self.why: ShedReason = why
        self.retry_after_s = retry_after_s
