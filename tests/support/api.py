"""The router's app over a fake dispatcher, in memory or on a real socket."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from support.checkpoints import write_checkpoint
from support.fake_dispatcher import FakeDispatcher, StubCluster
from support.fake_models import FakeModels, text_of

from protocol.process.metrics import RouterMetrics
from protocol.text.tokenizer import Tokenizer
from router.api.model_choice import ModelChoice
from router.api.stream_door import EXTENSION
from router.http.app import create_app
from router.models.model_text import ChosenModel, ModelText
from router.runtime import ApiLimits, Runtime
from router.wire.limits import ConnectionLimits
from router.wire.listener import HttpServer

MODEL = "tiny"
HI = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Everything a test of the HTTP surface may look at or change."""

    runtime: Runtime
    dispatcher: FakeDispatcher
    cluster: StubCluster
    models: FakeModels

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the first model."""
        return self.models.texts[0].tokenizer

    def choose(self, name: str | None) -> ChosenModel:
        """For functions that want it."""
        return ModelChoice(self.models, "").choose(name)

    def app(self, **changes: Any) -> FastAPI:
        """`changes` are fields of the runtime, of its limits or of its models' texts."""
        limits = {name: changes.pop(name) for name in list(changes) if hasattr(ApiLimits, name)}
        fields = ModelText.__dataclass_fields__
        if of_text := {name: changes.pop(name) for name in list(changes) if name in fields}:
            changes["models"] = self.models.changed(**of_text)
        changed = replace(self.runtime, limits=replace(self.runtime.limits, **limits), **changes)
        return create_app(changed)

    @asynccontextmanager
    async def client(self, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        """In memory: no socket, and answers arrive as a whole."""
        app = with_stream_door(self.app(**changes))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            yield client

    @asynccontextmanager
    async def serving(
        self, limits: ConnectionLimits | None = None, max_connections: int = 100, **changes: Any
    ) -> AsyncIterator[str]:
        """On a loopback socket, by the server of production; gives the base URL."""
        async with self.served(limits, max_connections, **changes) as (_, url):
            yield url

    @asynccontextmanager
    async def served(
        self,
        limits: ConnectionLimits | None = None,
        max_connections: int = 100,
        drain_s: float = 1.0,
        **changes: Any,
    ) -> AsyncIterator[tuple[HttpServer, str]]:
        """The same, with the server, which may be told to end."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = HttpServer(
                self.app(**changes),
                metrics=self.runtime.metrics,
                limits=limits or ConnectionLimits(),
                max_connections=max_connections,
                drain_s=drain_s,
                end_requests=self.dispatcher.end_requests,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.serve(sockets=[listener]), name="http")
                try:
                    yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
                finally:
                    server.should_exit = True


def with_stream_door(app: ASGIApp) -> ASGIApp:
    """The extension that our server has, for one that has it not and whose `send` never waits."""

    async def extended(scope: Scope, receive: Receive, send: Send) -> None:
        class Door:
            def write_now(self, body: bytes) -> int:
                sending = send({"type": "http.response.body", "body": body, "more_body": True})
                for _ in sending.__await__():
                    raise AssertionError("it waits")
                return 0

        await app({**scope, "extensions": {EXTENSION: Door()}}, receive, send)

    return extended


def make_bench(path: Path, **checkpoint: Any) -> Bench:
    tokenizer = Tokenizer.load(write_checkpoint(path, **checkpoint))
    dispatcher = FakeDispatcher(tokenizer)
    cluster = StubCluster(dispatcher)
    models = FakeModels(text_of(tokenizer, model=MODEL))
    runtime = Runtime(
        models=models,
        dispatcher=dispatcher,
        cluster=cluster,
        metrics=RouterMetrics(),
    )
    return Bench(runtime=runtime, dispatcher=dispatcher, cluster=cluster, models=models)


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": HI} | fields
    return await client.post("/v1/chat/completions", json=body)


async def complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": MODEL, "prompt": "hi"} | fields)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events_of(response: httpx.Response) -> list[Any]:
    """The JSON of every event; `[DONE]` as it is."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("\n\n")
    lines = response.text.removesuffix("\n\n").split("\n\n")
    found = [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in found]
