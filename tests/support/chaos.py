"""Clients of a fleet in chaos: what they ask, and whether the answer is the undisturbed one.

What an answer must be is what the same fleet gave before anything was disturbed, by either router.
Workers compute in float32 with random weights: a wrong byte of KV changes what they say.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from support.chaos_fleet import ChaosFleet, chaos_fleet

from tools.make_checkpoint import CHAT_TEMPLATE, Shape, make_checkpoint

NUM_CLIENTS = 12
TIMEOUT_S = 120.0
TEMPLATE = "{% if tools %}{{ tools | tojson }} by <tool_call>{% endif %}" + CHAT_TEMPLATE
DAYS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Ulm"]},
        "days": DAYS | {"minItems": 12, "maxItems": 12},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
MODEL = "chaos"
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Weather?"}],
    "max_tokens": 300,
    "temperature": 1,
}
FORM = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    kind: str
    path: str
    body: dict[str, Any]


def _completion(kind: str, *, salt: int, length: int, **more: Any) -> Ask:
    prompt = [2 + (salt * 97 + i * i * 7) % 900 for i in range(length)]
    body = {
        "model": MODEL,
        "prompt": prompt,
        "seed": salt,
        "ignore_eos": True,
        "temperature": 0.9,
        **more,
    }
    return Ask(kind=kind, path="/v1/completions", body=body)


def _chat(kind: str, **more: Any) -> Ask:
    return Ask(kind=kind, path="/v1/chat/completions", body={**CHAT, **more})


ASKS: Sequence[Ask] = (
    _completion("greedy", salt=1, length=300, max_tokens=60, temperature=0.0),
    _completion("sampled", salt=2, length=90, max_tokens=80),
    _completion("streamed", salt=3, length=17, max_tokens=120, stream=True),
    _completion("long prompt", salt=4, length=900, max_tokens=20, stream=True),
    _completion("one token", salt=5, length=40, max_tokens=1),
    _completion("n=2", salt=6, length=120, max_tokens=50, n=2),
    _completion("n=2 streamed", salt=7, length=33, max_tokens=70, n=2, stream=True),
    _completion("penalised", salt=8, length=64, max_tokens=60, repetition_penalty=1.2),
    _chat("schema", seed=9, response_format=FORM),
    _chat("schema streamed", seed=10, response_format=FORM, stream=True),
    _chat("schema n=2", seed=11, response_format=FORM, n=2),
    _chat("tools", seed=12, tools=[TOOL], tool_choice="required"),
    _chat("tools streamed", seed=13, tools=[TOOL], tool_choice="required", stream=True),
)


def chaos_checkpoint(folder: Path) -> Path:
    """Half a million random parameters that call tools when their grammar makes them."""
    path = folder / MODEL
    make_checkpoint(path, Shape(hidden=128, layers=3, mlp=256, vocab=1024, context=2048))
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return path


@dataclass(slots=True)
class Outcome:
    """What came of it. `told`: the first failures, each with the request's record."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Answers that were right, by kind."""
    num_wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """By code."""
    told: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def num_right(self) -> int:
        return self.kinds.total()

    @property
    def is_clean(self) -> bool:
        return not self.num_wrong and not self.errors


class _Refused(Exception):
    """The answer was an error; its code."""


async def run_chaos(
    checkpoint: Path, *, seconds: float, every_s: float, seed: int = 1
) -> tuple[Outcome, dict[str, int]]:
    """What came of the requests, and how often what was done to workers."""
    async with chaos_fleet(checkpoint) as fleet:
        expected = [await _undisturbed(fleet, ask) for ask in ASKS]
        outcome, numbers = Outcome(), count()
        async with asyncio.TaskGroup() as tasks:
            chance = random.Random(seed)
            disturbing = tasks.create_task(
                fleet.disturb(every_s=every_s, chance=chance), name="chaos"
            )
            ends_at = asyncio.get_running_loop().time() + seconds
            clients = [
                tasks.create_task(
                    _keep_asking(fleet, expected, outcome, numbers, ends_at=ends_at), name="client"
                )
                for _ in range(NUM_CLIENTS)
            ]
            await asyncio.wait(clients)
            disturbing.cancel()
        await fleet.until_ready()
        await fleet.until_idle()
        after = [await _undisturbed(fleet, ask) for ask in ASKS]
        assert after == expected
        outcome.figures = await _figures(fleet)
        if not outcome.is_clean:
            outcome.told += map(str, fleet.router_complaints())
        return outcome, dict(fleet.deeds)


async def _undisturbed(fleet: ChaosFleet, ask: Ask) -> object:
    answers = [await _answer(url, ask, name=f"calm {ask.kind}") for url in fleet.urls]
    assert answers[0] == answers[1], ask.kind
    return answers[0]


async def _keep_asking(
    fleet: ChaosFleet,
    expected: Sequence[object],
    outcome: Outcome,
    numbers: "count[int]",
    *,
    ends_at: float,
) -> None:
    while asyncio.get_running_loop().time() < ends_at:
        number = next(numbers)
        index, url = number % len(ASKS), fleet.urls[number // len(ASKS) % 2]
        ask, name = ASKS[index], f"chaos-{number}"
        failure = ""
        try:
            answer = await _answer(url, ask, name=name)
            if answer == expected[index]:
                outcome.kinds[ask.kind] += 1
            else:
                outcome.num_wrong += 1
                failure = f"wrong: {answer!r} instead of {expected[index]!r}"
        except (_Refused, httpx.HTTPError) as error:
            code = str(error) if isinstance(error, _Refused) else type(error).__name__
            outcome.errors[code] += 1
            failure = code
        if failure and len(outcome.told) < 8:
            record = await _record(url, name)
            outcome.told.append(f"{name} ({ask.kind}): {failure}\n{record}")


async def _record(url: str, name: str) -> str:
    async with httpx.AsyncClient(timeout=10) as client:
        return (await client.get(f"{url}/requests/{name}")).text


async def _answer(url: str, ask: Ask, *, name: str) -> object:
    """Texts and calls of each choice with its finish reason. Raises _Refused."""
    headers = {"x-request-id": name.replace(" ", "-").replace("=", "")}
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, headers=headers) as client:
        if ask.body.get("stream"):
            return await _streamed(client, ask)
        answer = await client.post(ask.path, json=ask.body)
        said = answer.json()
        if answer.status_code != 200:
            raise _Refused(_code(said))
        return [_whole(choice) for choice in said["choices"]]


def _code(said: dict[str, Any]) -> str:
    error = said["error"]
    return str(error["code"] or error["message"])


def _whole(choice: dict[str, Any]) -> list[str]:
    message = choice.get("message") or {}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    text = choice.get("text") or message.get("content") or ""
    return [text, *(f"{one['name']} {one['arguments']}" for one in calls), choice["finish_reason"]]


async def _streamed(client: httpx.AsyncClient, ask: Ask) -> object:
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    async with client.stream("POST", ask.path, json=ask.body) as answer:
        if answer.status_code != 200:
            raise _Refused(_code(json.loads(await answer.aread())))
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise _Refused(_code(event))
            for choice in event["choices"]:
                index = choice["index"]
                texts[index] = texts.get(index, "") + _piece(choice)
                reasons[index] = choice["finish_reason"] or reasons.get(index, "")
    return [[texts[index], reasons[index]] for index in sorted(texts)]


def _piece(choice: dict[str, Any]) -> str:
    delta = choice.get("delta") or {}
    calls = [call.get("function") or {} for call in delta.get("tool_calls") or ()]
    pieces = [one.get("name") or one.get("arguments") or "" for one in calls]
    return (choice.get("text") or delta.get("content") or "") + "".join(pieces)


async def _figures(fleet: ChaosFleet) -> dict[str, float]:
    retries = {
        f"retries_{why}": await fleet.metric("baton_retries_total", f'why="{why}"')
        for why in ("lost", "stalled", "refused")
    }
    stalls = {
        f"stalled_{what}": await fleet.metric("baton_router_stalled_total", f'what="{what}"')
        for what in ("first_token", "next_token")
    }
    spent = await fleet.metric("baton_router_retries_spent_total")
    return {**retries, **stalls, "retries_spent": spent}
