"""What a client is told when a request is not served: OpenAI's error object and a status.

Before the first byte it is a response; in a stream that has begun, its body is the last event.
"""

import math

import msgspec
from starlette.responses import Response

from protocol.errors import BatonError, CapacityError
from router.requests.events import Condemned, NoWorkers, RequestFailed, TooLong

_WORKERS_LOST = "workers_lost"


class ApiError(Exception):
    """One refusal. `param` is the field at fault, `retry_after_s` a hint to come back."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`"""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def response(self) -> Response:
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (408, 413):  # the rest of the body is not read
            headers["connection"] = "close"
        if self.code == _WORKERS_LOST:  # OpenAI's clients would send it again by themselves
            headers["x-should-retry"] = "false"
        return Response(self.body, self.status, headers, media_type="application/json")


_TYPES = {429: "rate_limit_error"} | dict.fromkeys((500, 502, 503, 504), "server_error")


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


def bad_field(param: str, rule: str) -> ApiError:
    """A mistake in one field of the request. The message starts with its name."""
    return ApiError(400, f"{param}: {rule}", param=param)


def as_api_error(error: BatonError) -> ApiError:
    """What a failure of ours means to the client."""
    message = str(error)
    match error:
        case CapacityError():
            return ApiError(429, message, code="overloaded", retry_after_s=error.retry_after_s)
        case NoWorkers():
            return ApiError(503, message, code="no_workers", retry_after_s=error.retry_after_s)
        case TooLong() | RequestFailed(code="too_long"):
            return ApiError(400, message, code="context_length_exceeded")
        case Condemned():
            return ApiError(500, message, code=_WORKERS_LOST)
        case RequestFailed(code="invalid"):
            return ApiError(400, message, code="invalid_request")
        case RequestFailed(code="deadline"):
            return ApiError(504, message, code="deadline_exceeded")
        case _ if error.retryable:
            return ApiError(503, message, code="unavailable", retry_after_s=1.0)
        case _:
            return ApiError(500, message, code="internal_error")
