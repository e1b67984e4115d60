"""What a client is told when a request is not served: OpenAI's error object and a status.

Before the first byte it is a response; in a stream that has begun, its body is the last event.
"""

import logging
import math
from collections.abc import Callable

import msgspec
from starlette.responses import Response

from protocol.errors import BatonError, CapacityError
from router.admission.shed import QueueShed
from router.api.shown import shown
from router.models.model_unknown import UnknownModel
from router.requests.events import (
    NoWorkers,
    PoisonRequest,
    RequestFailed,
    RetriesSpent,
    RouterEnds,
    TooLong,
)
from router.tenants.limit_reached import LimitReached

log = logging.getLogger("baton.api")
_WORKERS_LOST = "workers_lost"
MAX_NAMES = 16
"""Of models, told to who asks for another."""
_NOT_AGAIN = (_WORKERS_LOST, "request_too_large")


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

    def response(self, show: "ShowError | None" = None) -> Response:
        """`show` writes the body; None: as OpenAI does."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (408, 413):  # the rest of the body is not read
            headers["connection"] = "close"
        if self.code in _NOT_AGAIN:  # OpenAI's clients would send it again by themselves
            headers["x-should-retry"] = "false"
        body = (show or openai_error)(self)
        return Response(body, self.status, headers, media_type="application/json")


ShowError = Callable[[ApiError], bytes]
"""An error as the body that clients of one API read."""


def openai_error(error: ApiError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`"""
    shown = {
        "message": error.message,
        "type": _TYPES.get(error.status, "invalid_request_error"),
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": shown})


_TYPES = {429: "rate_limit_error"} | dict.fromkeys((500, 502, 503, 504), "server_error")


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


def bad_field(param: str, rule: str) -> ApiError:
    """A mistake in one field of the request. The message starts with its name."""
    return ApiError(400, f"{param}: {rule}", param=param)


def unsupported_field(param: str, what: str = "") -> ApiError:
    """What Baton does not do; `what`: the value at fault, and "is"."""
    message = f"{param}: {what} not supported by this server".replace(":  ", ": ")
    return ApiError(400, message, param=param, code="unsupported_parameter")


class ContextExceeded(ApiError):
    """A prompt of `num_tokens` and `max_tokens` of output do not fit the context. Not `exact`: the
    prompt was not tokenised, `num_tokens` is the least it can have."""

    def __init__(
        self,
        message: str,
        *,
        param: str,
        context: int,
        num_tokens: int,
        max_tokens: int,
        exact: bool,
    ) -> None:
        super().__init__(400, message, param=param, code="context_length_exceeded")
        self.context = context
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        self.exact = exact


def context_exceeded(
    param: str, *, context: int, num_tokens: int, max_tokens: int, exact: bool = True
) -> ContextExceeded:
    """In OpenAI's sentence, whose words and numbers clients look for. `exact`: see above."""
    least = "" if exact else "at least "
    message = (
        f"This model's maximum context length is {context} tokens. However, you requested {least}"
        f"{num_tokens + max_tokens} tokens ({num_tokens} in the {param}, {max_tokens} in the"
        f" completion). Please reduce the length of the {param} or completion."
    )
    return ContextExceeded(
        message,
        param=param,
        context=context,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
        exact=exact,
    )


def as_api_error(error: BatonError) -> ApiError:
    """What a failure of ours means to the client. Its reasons name workers and addresses: they
    are for the log and `/requests`, never for the answer."""
    told = _told(error)
    log.info(
        "request not served", extra={"status": told.status, "code": told.code, "why": str(error)}
    )
    return told


def _told(error: BatonError) -> ApiError:
    match error:
        case QueueShed(why="share", retry_after_s=wait_s):
            message = (
                f"Rate limit reached: too many requests of yours wait; try again in {wait_s:.3g}s."
            )
            return ApiError(429, message, code="overloaded", retry_after_s=wait_s)
        case QueueShed(retry_after_s=wait_s):
            message = f"This server is overloaded; try again in {wait_s:.3g}s."
            return ApiError(503, message, code="overloaded", retry_after_s=wait_s)
        case LimitReached():
            return _limit_reached(error)
        case CapacityError(retry_after_s=wait_s):
            message = f"Rate limit reached: there is no room now; try again in {wait_s:.3g}s."
            return ApiError(429, message, code="overloaded", retry_after_s=wait_s)
        case NoWorkers(retry_after_s=wait_s):
            message = f"No worker can serve this model now; try again in {wait_s:.3g}s."
            return ApiError(503, message, code="no_workers", retry_after_s=wait_s)
        case TooLong() | RequestFailed(code="too_long"):
            return ApiError(400, _TOO_LONG, code="context_length_exceeded")
        case UnknownModel():
            return _unknown_model(error)
        case PoisonRequest():
            message = "Workers were lost with this request as the last that they had been given."
            return ApiError(500, message, code=_WORKERS_LOST)
        case RequestFailed(code="invalid"):
            message = "This model cannot do what the request asks."
            return ApiError(400, message, code="invalid_request")
        case RequestFailed(code="grammar"):
            message = "The form asked for is too complex, or none of this model's tokens goes on."
            return ApiError(400, message, code="grammar_exhausted")
        case RequestFailed(code="deadline"):
            message = "The request took longer than this server allows."
            return ApiError(504, message, code="deadline_exceeded")
        case RequestFailed(code="overloaded", retryable=False):
            message = "The client reads more slowly than the model writes."
            return ApiError(408, message, code="client_too_slow")
        case RetriesSpent(retry_after_s=wait_s):
            message = (
                "The worker that served this request was lost, with too many others to repeat "
                f"them all; try again in {wait_s:.3g}s."
            )
            return ApiError(503, message, code="retries_spent", retry_after_s=wait_s)
        case RouterEnds():
            message = "This server is being restarted; try again."
            return ApiError(503, message, code="restarting", retry_after_s=1.0)
        case _ if error.retryable:
            message = "The workers that served this request were lost; try again."
            return ApiError(503, message, code="unavailable", retry_after_s=1.0)
        case _:
            message = "The request failed in this server; its log has the reason."
            return ApiError(500, message, code="internal_error")


def _unknown_model(error: UnknownModel) -> ApiError:
    served = [f"`{name}`" for name in error.served[:MAX_NAMES]]
    more = len(error.served) - len(served)
    names = ", ".join(served) + (f" and {more} more" if more else "")
    if error.name is None:
        return bad_field("model", f"required, for several are served here: {names}")
    those = f"{names} {'do' if len(error.served) > 1 else 'does'}" if served else "none does now"
    message = f"The model `{shown(error.name)}` does not exist here; {those}."
    return ApiError(404, message, param="model", code="model_not_found")


def _limit_reached(error: LimitReached) -> ApiError:
    """In OpenAI's words, which clients look through for numbers."""
    wait_s = error.retry_after_s
    message = (
        f"Rate limit reached for {error.kind} per min: Limit {error.limit}, Requested {error.num}."
    )
    if wait_s is None:
        more = " A minute never allows as many: send less, or ask for fewer `max_tokens`."
        return ApiError(429, message + more, code="request_too_large")
    more = f" Please try again in {wait_s:.3g}s."
    return ApiError(429, message + more, code="rate_limit_exceeded", retry_after_s=wait_s)


_TOO_LONG = (
    "This model's maximum context length is more than its workers have memory for now, and this"
    " request needs more than that. Please reduce the length of the messages or completion."
)
