"""The HTTP surface: OpenAI's endpoints and the operator's, over one `Runtime`.

FastAPI routes and documents; bodies are read and answers written by `router.http.generate`,
because a token should cost one write and no more. What generates is reached past FastAPI's own
layers, which would cost an arrival 0.1 ms.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi_swagger import patch_fastapi
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import BatonError
from protocol.ids import RequestId
from protocol.process.machine import usable_cores
from protocol.process.version import baton_version
from router.anthropic.errors import anthropic_error
from router.anthropic.prepare import count_tokens, prepare_message
from router.api.errors import ApiError, ClientGone, as_api_error
from router.api.model_choice import Choose, ModelChoice
from router.api.session import session_of
from router.api.threads import Threads
from router.http.admission import Stock
from router.http.anthropic.message_answer import StreamedMessage, WholeMessage
from router.http.exchange import Exchange
from router.http.generate import AppState, GenerateResponse, Surface
from router.http.kept_bodies import KeptBodies
from router.http.middleware import (
    INTERNAL_ERROR,
    ApiMiddleware,
    client_of,
    request_id,
    show_error_of,
)
from router.http.models.listing import ModelListing
from router.http.models.tokens import detokenize, tokenize
from router.http.openai.embedding_answer import EmbeddingAnswer
from router.http.openai.json_answer import JsonAnswer
from router.http.openai.sse_answer import SseAnswer
from router.http.openapi.document import make_document
from router.http.openapi.endpoints import ENDPOINTS
from router.http.responses.create import ResponseCreation
from router.http.responses.kept import (
    KeptAnswer,
    delete_response,
    input_items,
    keeping_of,
    new_recent_answers,
    not_cancelled,
    whole_response,
)
from router.http.trimming import Trimming
from router.openai.embeddings import prepare_embeddings
from router.openai.prepare import prepare_chat, prepare_completion
from router.runtime import Runtime
from router.whole_router import WholeRouter

NOT_READY_RETRY_AFTER_S = 1.0
CHAT = Surface(prepare=prepare_chat, whole=JsonAnswer, stream=SseAnswer)
COMPLETIONS = Surface(prepare=prepare_completion, whole=JsonAnswer, stream=SseAnswer)
MESSAGES = Surface(
    prepare=prepare_message,
    whole=WholeMessage,
    stream=StreamedMessage,
    show_error=anthropic_error,
)
EMBEDDINGS = Surface(prepare=prepare_embeddings, whole=EmbeddingAnswer, stream=EmbeddingAnswer)
GENERATING = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/messages": MESSAGES,
}
OPEN_TO_ALL = "no API key is set: this API is open to whoever reaches its port"


class _App(FastAPI):
    """FastAPI's, behind `outermost`, which may answer without it."""

    outermost: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.outermost(scope, receive, send)

    def route(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return super().__call__(scope, receive, send)


def create_app(runtime: Runtime) -> FastAPI:
    """The app. Its lifespan owns the tokenising threads and the socket for siblings, and nothing of
    `runtime`."""
    state = _app_state(runtime)
    whole = WholeRouter(runtime, num_held=lambda: state.seats.num_held)
    answers = {path: GenerateResponse(state, surface) for path, surface in GENERATING.items()}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        siblings = runtime.siblings
        try:
            async with nullcontext() if siblings is None else siblings.answering(whole.answer):
                yield
        finally:
            state.threads.shutdown()

    app = _App(
        title="Baton",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.outermost = ApiMiddleware(
        _past_routing(answers, app.route),
        api_keys=runtime.api_keys,
        keys=runtime.keys,
        local_names=runtime.local_names,
        cors_origins=runtime.cors_origins,
        metrics=runtime.metrics,
    )
    app.add_exception_handler(HTTPException, _refusal)
    app.add_exception_handler(ApiError, _refusal)
    app.add_exception_handler(Exception, _mistake)
    _add_generation(app, answers)
    _add_responses(app, state)
    _add_models(app, ModelListing(runtime.models, since=int(time.time())))
    _add_tokens(app, state)
    _add_operations(app, runtime, whole)
    _add_document(app, runtime)
    return app


def _app_state(runtime: Runtime) -> AppState:
    limits = runtime.limits
    bodies = limits.max_bodies_bytes
    return AppState(
        runtime=runtime,
        seats=Stock(
            limits.max_in_flight,
            client_size=runtime.max_in_flight_of_one,
            what="requests in flight",
            retry_after_s=limits.retry_after_s,
        ),
        bodies=Stock(
            bodies,
            client_size=max(bodies // 2, limits.max_body_bytes),
            what="bytes of request bodies",
            retry_after_s=limits.retry_after_s,
        ),
        large_bodies=asyncio.Semaphore(max(1, runtime.tokenize_threads - 1)),
        trimming=Trimming(),
        kept_bodies=KeptBodies(),
        recent=new_recent_answers(runtime),
        threads=Threads(runtime.tokenize_threads, name="tokenize", num_cores=len(usable_cores())),
    )


def _past_routing(answers: Mapping[str, ASGIApp], rest: ASGIApp) -> ASGIApp:
    """`answers` to POST by path; all else is for `rest`."""

    def app(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        answer = answers.get(scope["path"], rest) if is_post else rest
        return answer(scope, receive, send)

    return app


def _add_generation(app: FastAPI, answers: Mapping[str, Response]) -> None:
    """For those that ask what there is, and those that ask with another method."""

    async def answer(request: Request) -> Response:
        return answers[request.url.path]

    for path in answers:
        app.add_api_route(path, answer, methods=["POST"])


def _add_responses(app: FastAPI, state: AppState) -> None:
    @app.post("/v1/responses")
    async def create() -> Response:
        return ResponseCreation(state)

    @app.get("/v1/responses/{ident}")
    async def retrieve(request: Request, ident: str) -> Response:
        return KeptAnswer(state, ident, request.query_params, whole_response)

    @app.get("/v1/responses/{ident}/input_items")
    async def items(request: Request, ident: str) -> Response:
        return KeptAnswer(state, ident, request.query_params, input_items)

    @app.post("/v1/responses/{ident}/cancel")
    async def cancel(request: Request, ident: str) -> Response:
        return KeptAnswer(state, ident, request.query_params, not_cancelled)

    @app.delete("/v1/responses/{ident}")
    async def delete(request: Request, ident: str) -> Response:
        keeping = keeping_of(state, client_of(request.scope))
        return await delete_response(keeping, ident)


def _add_models(app: FastAPI, listing: ModelListing) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return _json(listing.shapes(is_anthropic=_is_anthropic(request)))

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> Response:
        return _json(listing.shape(model, is_anthropic=_is_anthropic(request)))


def _is_anthropic(request: Request) -> bool:
    return show_error_of(request.scope) is anthropic_error


def _add_tokens(app: FastAPI, state: AppState) -> None:
    runtime = state.runtime

    def choice_of(request: Request) -> ModelChoice:
        session = session_of(dict(request.scope["headers"]), client=client_of(request.scope).name)
        return ModelChoice(runtime.models, session or request_id(request.scope))

    async def answer(request: Request, work: Callable[[Choose, bytes], Any]) -> Response:
        exchange = Exchange(request.scope, request.receive, _never, limits=runtime.limits)
        choice = choice_of(request)
        try:
            with state.seats.share(client_of(request.scope).name) as seats:
                async with state.body_of(exchange, seats) as body:
                    make = partial(
                        state.run_in_thread, work, choice.choose, body, num_bytes=len(body)
                    )
                    done = await choice.made(
                        make,
                        within_s=runtime.limits.request_timeout_s,
                        watched=exchange.unless_gone,
                    )
            response = _json(done, headers=choice.headers)
            state.trimming.count(len(response.body))
            return response
        except BatonError as error:
            raise as_api_error(error) from error
        except ClientGone:
            return Response(status_code=499)  # nobody reads it

    @app.post("/tokenize")
    async def tokenize_(request: Request) -> Response:
        return await answer(request, tokenize)

    @app.post("/detokenize")
    async def detokenize_(request: Request) -> Response:
        return await answer(request, detokenize)

    @app.post("/v1/messages/count_tokens")
    async def count_tokens_(request: Request) -> Response:
        return await answer(request, count_tokens)

    @app.get("/tokenizer_info")
    async def tokenizer_info(request: Request) -> Response:
        """What clients need that make prompts themselves."""
        choice = choice_of(request)
        try:
            text = choice.choose(request.query_params.get("model")).text
        except BatonError as error:
            raise as_api_error(error) from error
        return _json(text.tokenizer_description, headers=choice.headers)


def _add_operations(app: FastAPI, runtime: Runtime, whole: WholeRouter) -> None:
    cluster = runtime.cluster
    one_at_a_time = asyncio.Lock()
    open_to_all = {"warning": OPEN_TO_ALL} if runtime.is_open_to_network else {}

    @app.get("/ping")
    @app.post("/ping")
    @app.get("/health")
    async def health() -> Response:
        """200 while this process lives, whatever the workers do."""
        return _json({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        """200 only when a request would be served now, or after a wait for a worker."""
        reason = cluster.not_ready() or runtime.models.not_ready()
        if reason is None:
            return _json({"ready": True} | open_to_all)
        retry_after = {"retry-after": f"{NOT_READY_RETRY_AFTER_S:.0f}"}
        return _json({"ready": False, "reason": reason}, status=503, headers=retry_after)

    @app.get("/version")
    async def version() -> Response:
        return _json({"version": baton_version()})

    @app.get("/load")
    async def load() -> Response:
        """Choices in flight at this router, in vLLM's shape."""
        return _json({"server_load": await whole.num_in_flight()})

    @app.get("/metrics")
    async def metrics() -> Response:
        async with one_at_a_time:  # milliseconds each, and no key is needed to ask
            exposition = await whole.metrics()
            await asyncio.sleep(0)
        return Response(exposition, headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/cluster")
    async def view() -> Response:
        return _json(await whole.view())

    @app.get("/requests/{request:path}")
    @app.get("/trace/{request:path}")
    async def trace(request: str) -> Response:
        """What became of a recent request; of each choice, when it had several."""
        traces = await whole.traces(RequestId(request))
        if not traces:
            raise ApiError(404, f"requests: none of the last minutes here was {request[:128]!r}")
        return _json({"request": request, "traces": traces})


def _add_document(app: FastAPI, runtime: Runtime) -> None:
    """`/openapi.json`, and `/docs`, a page that needs nothing but this server."""

    @lru_cache(maxsize=2)
    def document(models: tuple[str, ...]) -> dict[str, Any]:
        return make_document(ENDPOINTS, models=models, version=version("baton"))

    def current() -> dict[str, Any]:
        return document(tuple(one.name for one in runtime.models.listed()))

    app.openapi = current  # type: ignore[method-assign]
    patch_fastapi(app, redirect_from_root_to_docs=False, title="Baton")


def _json(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


async def _refusal(request: Request, error: Exception) -> Response:
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        if allow := (error.headers or {}).get("Allow", ""):
            headers["allow"] = f"{allow.replace('GET', 'GET, HEAD')}, OPTIONS"
        if request.method == "OPTIONS" and allow:
            return Response(status_code=204, headers=headers)
        error = ApiError(error.status_code, str(error.detail))
    assert isinstance(error, ApiError)
    response = error.response(show_error_of(request.scope))
    response.headers.update(headers)
    return response


async def _mistake(request: Request, _: Exception) -> Response:
    """Of ours: Starlette raises it again, and the middleware writes it down."""
    return INTERNAL_ERROR.response(show_error_of(request.scope))


async def _never(_: object) -> None:
    raise AssertionError("the response is FastAPI's to send")
