"""Clients that never stop asking while a cluster is changed, and remember every answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

ANSWER_S = 120.0
"""More than requests wait for a worker that is replaced without a spare."""
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One request and what came of it."""

    model: str
    prompt: str
    text: str = ""
    route: str = ""
    served: str = ""
    """`x-baton-model`."""
    failure: str = ""
    """Why it is no whole answer; "": it is."""
    began: int = 0
    """How many were answered when it was asked."""


@dataclass(slots=True)
class Load:
    """Of several clients through one URL."""

    url: str
    prompts: Sequence[str]
    told: list[Told] = field(default_factory=list)

    @property
    def failures(self) -> list[Told]:
        return [one for one in self.told if one.failure]

    def begun(self, since: int) -> list[Told]:
        """Those asked after so many had been answered and one more: surely later."""
        return [one for one in self.told if one.began > since]

    def texts(self, since: int) -> dict[str, set[str]]:
        """By prompt: all that was answered."""
        found: dict[str, set[str]] = {}
        for one in self.begun(since):
            if not one.failure:
                found.setdefault(one.prompt, set()).add(one.text)
        return found

    async def run(
        self, model: str, prompts: Sequence[str], *, max_tokens: int = 24, keeps: bool = False
    ) -> None:
        """One client, until cancelled. `keeps`: its connection, while the server does."""
        turn = 0
        async with AsyncClients(self.url, keeps=keeps) as clients:
            while True:
                prompt = prompts[turn % len(prompts)]
                turn += 1
                began = len(self.told)
                async with clients.one() as client:
                    told = await ask(client, model, prompt, max_tokens=max_tokens)
                self.told.append(replace(told, began=began))
                await asyncio.sleep(PAUSE_S)


class AsyncClients:
    """The same one each time, or each time another."""

    def __init__(self, url: str, *, keeps: bool) -> None:
        self._url, self._keeps = url, keeps
        self._kept: httpx.AsyncClient | None = None

    async def __aenter__(self) -> "AsyncClients":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._kept is not None:
            await self._kept.aclose()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._keeps:
            self._kept = self._kept or client_of(self._url)
            yield self._kept
            return
        async with client_of(self._url) as fresh:
            yield fresh


def client_of(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=ANSWER_S, trust_env=False, verify=False)


async def ask(
    client: httpx.AsyncClient,
    model: str,
    prompt: str,
    *,
    max_tokens: int,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Told:
    """A streamed chat, greedy; it is whole when it says why it ended, and that it did."""
    body = {
        "model": model, "messages": [{"role": "user", "content": prompt}], "stream": True,
        "temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, **more,
    }  # fmt: skip
    text, route, served, reason, is_done = "", "", "", None, False
    try:
        async with client.stream(
            "POST", "/v1/chat/completions", json=body, headers=headers
        ) as answer:
            if answer.status_code != 200:
                shown = (await answer.aread()).decode(errors="replace")
                return Told(model=model, prompt=prompt, failure=f"{answer.status_code} {shown}")
            route = answer.headers.get("x-baton-route", "")
            served = answer.headers.get("x-baton-model", "")
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    is_done = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        return Told(model=model, prompt=prompt, failure=line)
                    for choice in event["choices"]:
                        text += choice["delta"].get("content") or ""
                        reason = choice["finish_reason"] or reason
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        return Told(model=model, prompt=prompt, text=text, failure=repr(error))
    failure = "" if is_done and reason else f"cut after {text!r}"
    return Told(model=model, prompt=prompt, text=text, route=route, served=served, failure=failure)


@asynccontextmanager
async def steady_load(
    url: str,
    model: str,
    prompts: Sequence[str],
    *,
    num_clients: int = 3,
    max_tokens: int = 24,
) -> AsyncIterator[Load]:
    """Every other client keeps its connection."""
    load = Load(url, prompts)
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(
                load.run(model, prompts, max_tokens=max_tokens, keeps=number % 2 == 1),
                name=f"client {number}",
            )
            for number in range(num_clients)
        ]
        try:
            yield load
        finally:
            for one in running:
                one.cancel()
