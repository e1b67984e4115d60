"""The outermost layer of the app: names each request, asks who sends it and for the key, counts the
answers. Also what HTTP wants of every path: HEAD, and a path without doubled or last slashes.

`/health`, `/ping`, `/ready` and `/metrics` need no key: probes and scrapers have none, and they
show counts, never a prompt or a worker's address. Nor does the API's document, which anybody may
know.
"""

import logging
import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.ids import RequestId
from protocol.process.logs import request_context
from protocol.process.metrics import RouterMetrics
from router.anthropic.errors import id_headers, show_error_for
from router.api.errors import ApiError, ShowError
from router.api.model_choice import MODEL_HEADER
from router.api.paths import plain_path
from router.http.origin import check_origin
from router.http.rate_headers import RATE_HEADERS
from router.tenants.api_key import digest_name, key_digest
from router.tenants.client import KEYED, Client
from router.tenants.key_ring import KeyRing

log = logging.getLogger("baton.api")
PROBED_PATHS = frozenset({"/health", "/ping", "/ready", "/metrics"})
_DOCUMENT_PATHS = frozenset({"/openapi.json", "/docs"})
OPEN_PATHS = PROBED_PATHS | _DOCUMENT_PATHS
_OPEN_FOLDER = "/swagger/"
"""What the page at `/docs` is made of."""
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""What we echo: printable ASCII without spaces. Anything else is replaced by an id of ours."""
COUNTED_PATHS = PROBED_PATHS | {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/version",
    "/cluster",
    "/load",
}
"""Paths with a series of their own in the metrics; a client cannot make more."""
ANY_PATH = "*"
"""Of `OPTIONS *`."""
_ID_KEY = "baton.request_id"
_CLIENT_KEY = "baton.client"
_SHOW_KEY = "baton.show_error"
_MORE_KEY = "baton.more_headers"
_EXPOSED = (
    *("x-request-id", "request-id", "x-baton-route", MODEL_HEADER, "x-should-retry", "retry-after"),
    *RATE_HEADERS,
)
"""What pages may read of an answer's headers besides those that any may."""


class ApiMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: Sequence[str],
        keys: KeyRing | None,
        local_names: Collection[str] | None,
        cors_origins: Collection[str],
        metrics: RouterMetrics,
    ) -> None:
        """As of `Runtime`."""
        self._app = app
        self._local_names = local_names
        self._cors_origins = cors_origins
        self._digests = {key_digest(key.encode()) for key in api_keys}
        self._keys = keys
        self._is_open = not api_keys and keys is None
        self._metrics = metrics
        self._admitted = self._with_cors(self._admit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        name = _request_id(headers.get(b"x-request-id", b""))
        path = plain_path(scope["path"])
        is_head = scope["method"] == "HEAD"  # the server drops its body
        method = "GET" if is_head else scope["method"]
        show_error = show_error_for(path, headers)
        named = [(key.encode(), name.encode()) for key in id_headers(path, headers)]
        told: dict[str, str] = {}
        more = {_ID_KEY: name, _SHOW_KEY: show_error, "path": path, "method": method}
        scope = {**scope, **more, _MORE_KEY: told}
        started = False

        async def named_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                shown = ((key.encode(), value.encode()) for key, value in told.items())
                message["headers"] = [*message["headers"], *named, *shown]
                counted = path if path in COUNTED_PATHS else "other"
                self._metrics.requests.labels(counted, str(message["status"])).inc()
            await send(message)

        with request_context(name):
            try:
                await self._admitted(scope, receive, named_send)
            except Exception:  # the edge of the process: a mistake of ours must not be silent
                log.exception("request failed", extra={"remedy": "report it with this traceback"})
                if not started:
                    answer = self._with_cors(INTERNAL_ERROR.response(show_error))
                    await answer(scope, receive, named_send)

    def _with_cors(self, app: ASGIApp) -> ASGIApp:
        """`app`, whose answers pages of `cors_origins` may read; asked beforehand, as browsers do,
        it needs no key."""
        if not self._cors_origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=self._cors_origins,
            allow_methods=("*",),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=_EXPOSED,
        )

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope[_CLIENT_KEY] = self._client(scope, dict(scope["headers"]))
            answer = _SERVED if scope["path"] == ANY_PATH else self._app
        except ApiError as error:
            answer = error.response(show_error_of(scope))
        await answer(scope, receive, send)

    def _client(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Client:
        """Who sends this. ApiError 401 or 403 for who may not. Keys are looked up by their digest,
        so how long it takes says nothing of those that are right."""
        if self._local_names is not None:
            check_origin(headers, self._local_names, pages=self._cors_origins)
        host: str = (scope.get("client") or ("",))[0]
        if self._is_open:
            return Client(name=host)
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        bearer = given.strip() if scheme.lower() == b"bearer" else b""
        for key in (bearer, headers.get(b"x-api-key", b"")):
            client = self._client_of_key(key)
            if client is not None:
                return client
        if scope["path"] not in OPEN_PATHS and not scope["path"].startswith(_OPEN_FOLDER):
            raise _UNKNOWN_KEY
        return Client(name=host)

    def _client_of_key(self, given: bytes) -> Client | None:
        if self._keys is not None:
            key = self._keys.find_key(given, now=time.time())
            if key is not None:
                return Client(name=f"{KEYED}{key.name}", key=key)
        digest = key_digest(given)
        if digest in self._digests:
            return Client(name=f"{KEYED}{digest_name(digest)}")
        return None


def request_id(scope: Scope) -> RequestId:
    """The client's `x-request-id` if it is a decent one, else ours."""
    name: RequestId = scope[_ID_KEY]
    return name


def client_of(scope: Scope) -> Client:
    """Who sent it."""
    client: Client = scope[_CLIENT_KEY]
    return client


def tell_headers(scope: Scope, headers: Mapping[str, str]) -> None:
    """In the answer, whatever it will be, if it has not begun."""
    scope[_MORE_KEY].update(headers)


def show_error_of(scope: Scope) -> ShowError:
    """How an error is written to this client."""
    show: ShowError = scope[_SHOW_KEY]
    return show


def _request_id(given: bytes) -> RequestId:
    text = given.decode("latin-1")
    return RequestId(text if REQUEST_ID.fullmatch(text) else secrets.token_hex(16))


_UNKNOWN_KEY = ApiError(
    401,
    "Incorrect API key: send `Authorization: Bearer <key>` or `x-api-key: <key>`.",
    code="invalid_api_key",
)
_SERVED = Response(status_code=204, headers={"allow": "GET, HEAD, POST, OPTIONS"})
INTERNAL_ERROR = ApiError(500, "internal error", code="internal_error")
