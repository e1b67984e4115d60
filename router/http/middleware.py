"""The outermost layer of the app: names each request, asks for the key, counts the answers.

`/health`, `/ready` and `/metrics` need no key: probes and scrapers have none, and the three show
counts, never a prompt or a worker's address.
"""

import logging
import re
import secrets
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.ids import RequestId
from protocol.process.logs import request_context
from protocol.process.metrics import RouterMetrics
from router.openai.errors import ApiError

log = logging.getLogger("baton.api")
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""What we echo: printable ASCII without spaces. Anything else is replaced by an id of ours."""
COUNTED_PATHS = OPEN_PATHS | {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/cluster",
}
"""Paths with a series of their own in the metrics; a client cannot make more."""
_ID_KEY = "baton.request_id"


class ApiMiddleware:
    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], metrics: RouterMetrics) -> None:
        self._app = app
        self._api_keys = [key.encode() for key in api_keys]
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        name = _request_id(headers.get(b"x-request-id", b""))
        scope[_ID_KEY] = name
        path = scope["path"]
        started = False

        async def named_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
                counted = path if path in COUNTED_PATHS else "other"
                self._metrics.requests.labels(counted, str(message["status"])).inc()
            await send(message)

        with request_context(name):
            if path not in OPEN_PATHS and not self._is_known(headers.get(b"authorization", b"")):
                await _UNKNOWN_KEY.response()(scope, receive, named_send)
                return
            try:
                await self._app(scope, receive, named_send)
            except Exception:  # the edge of the process: a mistake of ours must not be silent
                log.exception("request failed", extra={"remedy": "report it with this traceback"})
                if not started:
                    await _INTERNAL.response()(scope, receive, named_send)

    def _is_known(self, authorization: bytes) -> bool:
        """Takes as long for a wrong key as for a right one."""
        if not self._api_keys:
            return True
        scheme, _, given = authorization.partition(b" ")
        matches = [secrets.compare_digest(given.strip(), key) for key in self._api_keys]
        return scheme.lower() == b"bearer" and any(matches)


def request_id(scope: Scope) -> RequestId:
    """The client's `x-request-id` if it is a decent one, else ours."""
    name: RequestId = scope[_ID_KEY]
    return name


def _request_id(given: bytes) -> RequestId:
    text = given.decode("latin-1")
    return RequestId(text if REQUEST_ID.fullmatch(text) else secrets.token_hex(16))


_UNKNOWN_KEY = ApiError(
    401, "Incorrect API key: send `Authorization: Bearer <key>`.", code="invalid_api_key"
)
_INTERNAL = ApiError(500, "internal error", code="internal_error")
