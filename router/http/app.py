"""The HTTP surface: OpenAI's endpoints and the operator's, over one `Runtime`.

FastAPI routes and documents; bodies are read and answers written by `router.http.generate`,
because a token should cost one write and no more.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from protocol.errors import BatonError
from protocol.ids import RequestId
from router.api.errors import ApiError, ClientGone, as_api_error
from router.api.generation import check_model, context_tokens
from router.http.admission import Stock
from router.http.embedding_answer import EmbeddingAnswer
from router.http.exchange import Exchange
from router.http.generate import AppState, GenerateResponse, Surface
from router.http.json_answer import JsonAnswer
from router.http.middleware import ApiMiddleware, client_of
from router.http.sse_answer import SseAnswer
from router.http.tokenize import detokenize, tokenize
from router.http.trimming import Trimming
from router.openai.embeddings import prepare_embeddings
from router.openai.prepare import prepare_chat, prepare_completion
from router.runtime import Runtime

NOT_READY_RETRY_AFTER_S = 1.0
CHAT = Surface(prepare=prepare_chat, whole=JsonAnswer, stream=SseAnswer)
COMPLETIONS = Surface(prepare=prepare_completion, whole=JsonAnswer, stream=SseAnswer)
EMBEDDINGS = Surface(prepare=prepare_embeddings, whole=EmbeddingAnswer, stream=EmbeddingAnswer)
OPEN_TO_ALL = "no API key is set: this API is open to whoever reaches its port"


def create_app(runtime: Runtime) -> FastAPI:
    """The app. Its lifespan owns the tokenising threads and nothing of `runtime`."""
    state = _app_state(runtime)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            state.tokenize_threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="Baton", lifespan=lifespan, redirect_slashes=False)
    app.add_middleware(
        ApiMiddleware,
        api_keys=runtime.api_keys,
        local_names=runtime.local_names,
        metrics=runtime.metrics,
    )
    app.add_exception_handler(HTTPException, _refusal)
    app.add_exception_handler(ApiError, _refusal)
    _add_generation(app, state)
    _add_models(app, runtime)
    _add_tokens(app, state)
    _add_operations(app, runtime)
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
        tokenize_threads=ThreadPoolExecutor(
            runtime.tokenize_threads, thread_name_prefix="tokenize"
        ),
    )


def _add_generation(app: FastAPI, state: AppState) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        return GenerateResponse(state, CHAT)

    @app.post("/v1/completions")
    async def completions() -> Response:
        return GenerateResponse(state, COMPLETIONS)

    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        return GenerateResponse(state, EMBEDDINGS)


def _add_models(app: FastAPI, runtime: Runtime) -> None:
    since = int(time.time())

    def shape() -> dict[str, object]:
        return {
            "id": runtime.model,
            "object": "model",
            "created": since,
            "owned_by": "baton",
            "max_model_len": context_tokens(runtime),
            "default_sampling_params": asdict(runtime.sampling_defaults),
        }

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [shape()]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        check_model(runtime, model)
        return _json(shape())


def _add_tokens(app: FastAPI, state: AppState) -> None:
    runtime = state.runtime

    async def answer(request: Request, work: Callable[[Runtime, bytes], Any]) -> Response:
        exchange = Exchange(request.scope, request.receive, _never, limits=runtime.limits)
        try:
            with state.seats.share(client_of(request.scope)) as seats:
                async with state.body_of(exchange, seats) as body:
                    response = _json(await state.run_in_thread(work, runtime, body))
            state.trimming.count(len(response.body))
            return response
        except BatonError as error:
            raise as_api_error(error) from error
        except ClientGone:
            return Response(status_code=499)  # nobody reads it

    @app.post("/tokenize")
    async def tokenize_(request: Request) -> Response:
        return await answer(request, partial(tokenize, context=context_tokens(runtime)))

    @app.post("/detokenize")
    async def detokenize_(request: Request) -> Response:
        return await answer(request, detokenize)


def _add_operations(app: FastAPI, runtime: Runtime) -> None:
    cluster = runtime.cluster
    one_at_a_time = asyncio.Lock()
    open_to_all = {"warning": OPEN_TO_ALL} if runtime.is_open_to_network else {}

    @app.get("/health")
    async def health() -> Response:
        """200 while this process lives, whatever the workers do."""
        return _json({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        """200 only when a request would be served now."""
        reason = cluster.not_ready()
        if reason is None:
            return _json({"ready": True} | open_to_all)
        retry_after = {"retry-after": f"{NOT_READY_RETRY_AFTER_S:.0f}"}
        return _json({"ready": False, "reason": reason}, status=503, headers=retry_after)

    @app.get("/metrics")
    async def metrics() -> Response:
        async with one_at_a_time:  # milliseconds each, and no key is needed to ask
            exposition = generate_latest(runtime.metrics.registry)
            await asyncio.sleep(0)
        return Response(exposition, headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/cluster")
    async def view() -> Response:
        return _json(cluster.view())

    @app.get("/trace/{request:path}")
    async def trace(request: str) -> Response:
        """What became of a recent request; of each choice, when it had several."""
        traces = cluster.traces(RequestId(request))
        if not traces:
            raise ApiError(404, f"trace: no request {request[:128]!r} among the recent ones")
        return _json({"request": request, "traces": traces})


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
    response = error.response()
    response.headers.update(headers)
    return response


async def _never(_: object) -> None:
    raise AssertionError("the response is FastAPI's to send")
