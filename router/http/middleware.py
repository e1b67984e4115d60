"""The outermost layer of the app: names each request, asks who sends it and for the key, counts the
answers. Also what HTTP wants of every path: HEAD, and a path without doubled or last slashes.

`/health`, `/ready` and `/metrics` need no key: probes and scrapers have none, and the three show
counts, never a prompt or a worker's address. Nor does the API's document, which anybody may know.
"""

import logging
import re
import secrets
from collections.abc import Collection, Mapping, Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.ids import RequestId
from protocol.process.logs import request_context
from protocol.process.metrics import RouterMetrics
from router.api.errors import ApiError
from router.http.origin import check_origin

log = logging.getLogger("baton.api")
_PROBED_PATHS = frozenset({"/health", "/ready", "/metrics"})
_DOCUMENT_PATHS = frozenset({"/openapi.json", "/docs"})
OPEN_PATHS = _PROBED_PATHS | _DOCUMENT_PATHS
_OPEN_FOLDER = "/swagger/"
"""What the page at `/docs` is made of."""
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""What we echo: printable ASCII without spaces. Anything else is replaced by an id of ours."""
COUNTED_PATHS = _PROBED_PATHS | {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/cluster",
}
"""Paths with a series of their own in the metrics; a client cannot make more."""
ANY_PATH = "*"
"""Of `OPTIONS *`."""
_ID_KEY = "baton.request_id"
_CLIENT_KEY = "baton.client"
_SLASHES = re.compile("/{2,}")


class ApiMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: Sequence[str],
        local_names: Collection[str] | None,
        metrics: RouterMetrics,
    ) -> None:
        """`local_names`: as of `Runtime`."""
        self._app = app
        self._local_names = local_names
        self._api_keys = [key.encode() for key in api_keys]
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        name = _request_id(headers.get(b"x-request-id", b""))
        path = _path(scope["path"])
        is_head = scope["method"] == "HEAD"  # the server drops its body
        method = "GET" if is_head else scope["method"]
        scope = {**scope, _ID_KEY: name, "path": path, "method": method}
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
            try:
                scope[_CLIENT_KEY] = self._client(scope, headers)
                answer = _SERVED if path == ANY_PATH else self._app
            except ApiError as error:
                answer = error.response()
            try:
                await answer(scope, receive, named_send)
            except Exception:  # the edge of the process: a mistake of ours must not be silent
                log.exception("request failed", extra={"remedy": "report it with this traceback"})
                if not started:
                    await _INTERNAL.response()(scope, receive, named_send)

    def _client(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        """Who sends this, as far as we tell clients apart: a key, or else an address. ApiError 401
        or 403 for who may not. Takes as long for a wrong key as for a right one."""
        if self._local_names is not None:
            check_origin(headers, self._local_names)
        host: str = (scope.get("client") or ("",))[0]
        if not self._api_keys:
            return host
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        matches = [secrets.compare_digest(given.strip(), key) for key in self._api_keys]
        if scheme.lower() == b"bearer" and any(matches):
            return f"key {matches.index(True)}"
        if scope["path"] not in OPEN_PATHS and not scope["path"].startswith(_OPEN_FOLDER):
            raise _UNKNOWN_KEY
        return host


def request_id(scope: Scope) -> RequestId:
    """The client's `x-request-id` if it is a decent one, else ours."""
    name: RequestId = scope[_ID_KEY]
    return name


def client_of(scope: Scope) -> str:
    """One string for each client that we tell apart; not for logs or answers."""
    client: str = scope[_CLIENT_KEY]
    return client


def _path(given: str) -> str:
    """A base URL with a slash too many is the commonest of mistakes. Request ids have their own."""
    if given.startswith("/trace/"):
        return given
    return _SLASHES.sub("/", given).rstrip("/") or "/"


def _request_id(given: bytes) -> RequestId:
    text = given.decode("latin-1")
    return RequestId(text if REQUEST_ID.fullmatch(text) else secrets.token_hex(16))


_UNKNOWN_KEY = ApiError(
    401, "Incorrect API key: send `Authorization: Bearer <key>`.", code="invalid_api_key"
)
_SERVED = Response(status_code=204, headers={"allow": "GET, HEAD, POST, OPTIONS"})
_INTERNAL = ApiError(500, "internal error", code="internal_error")
