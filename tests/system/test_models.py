"""Two routers that mount no model, before workers of several: each request has one model's text."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest
from support.checkpoints import write_checkpoint
from support.eventually import soon
from support.model_fleet import ModelFleet, ServedText, model_fleet
from support.processes import ROOT
from support.redis_server import RedisServer

PROMPT = "Once upon a time there was a small engine."
NUM_TOKENS = 3


@pytest.fixture(scope="module")
def tiny() -> ServedText:
    return ServedText.read(ROOT / "models" / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ServedText:
    """Has another tokeniser."""
    return ServedText.read(write_checkpoint(tmp_path_factory.mktemp("other")))


async def complete(
    client: httpx.AsyncClient, model: str | None, session: str = ""
) -> httpx.Response:
    body = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": 1}
    named = body if model is None else body | {"model": model}
    headers = {"x-session-id": session} if session else {}
    return await client.post("/v1/completions", json=named, headers=headers)


def said(answer: httpx.Response) -> tuple[str, str]:
    """Which model, and what."""
    assert answer.status_code == 200, answer.text
    return answer.headers["x-baton-model"], answer.json()["choices"][0]["text"]


def test_two_models_and_an_alias_behind_two_routers_that_mount_nothing(
    redis: RedisServer, tiny: ServedText, other: ServedText, tmp_path: Path
) -> None:
    aliases = tmp_path / "aliases.json"
    aliases.write_text(json.dumps({"prod": {"small": 50, "large@0e9e39": 50}}))

    async def test() -> None:
        flags = ("--aliases-file", str(aliases))
        async with model_fleet(redis, num_routers=2, flags=flags) as fleet:
            await soon(lambda: routers_answer(fleet))
            await fleet.add("decode-0", tiny, model="small")
            await fleet.add("decode-1", other, model="large", revision="0e9e39f249a1")
            await fleet.add("prefill-0", other, model="large", revision="0e9e39f249a1",
                            role="prefill")  # fmt: skip
            await soon(lambda: each_lists(fleet, {"small", "large", "prod"}))
            meant = {
                "small@revision": tiny.answer_to(PROMPT, num_tokens=NUM_TOKENS),
                "large@0e9e39f249a1": other.answer_to(PROMPT, num_tokens=NUM_TOKENS),
            }
            for client in fleet.clients:
                for name, version in (("small", "small@revision"), ("large", "large@0e9e39f249a1")):
                    assert said(await complete(client, name)) == (version, meant[version])
                assert (await complete(client, "medium")).status_code == 404
                unnamed = await complete(client, None)
                assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "model")
            await share_of_the_alias(fleet, meant)
            assert not fleet.given_another_text(PROMPT)
            aliases.write_text(json.dumps({"prod": {"large": 1}}))
            await soon(lambda: only_answers(fleet, "large@0e9e39f249a1"))

    asyncio.run(test())


async def routers_answer(fleet: ModelFleet) -> bool:
    try:
        return all([(await one.get("/health")).status_code == 200 for one in fleet.clients])
    except httpx.TransportError:
        return False


async def each_lists(fleet: ModelFleet, names: set[str]) -> bool:
    ready = [(await one.get("/ready")).status_code == 200 for one in fleet.clients]
    return all(ready) and await fleet.listed() == [names] * len(fleet.clients)


async def share_of_the_alias(fleet: ModelFleet, meant: dict[str, str]) -> None:
    """Each session has one model's answers, of whichever router; the sessions are of both."""
    chosen = Counter[str]()
    for number in range(16):
        asked = (complete(client, "prod", f"session-{number}") for client in fleet.clients)
        (version, text), *others = [said(answer) for answer in await asyncio.gather(*asked)]
        assert text == meant[version]
        assert others == [(version, text)]
        chosen[version] += 1
    assert len(chosen) == 2


async def only_answers(fleet: ModelFleet, version: str) -> bool:
    answers = [
        await complete(client, "prod", f"session-{number}")
        for client in fleet.clients
        for number in range(4)
    ]
    return {said(answer)[0] for answer in answers} == {version}


def all_answered(heard: Counter[tuple[str, bool]], versions: Iterable[str], num: int) -> bool:
    """Each of them so often, rightly or not."""
    return all(heard[one, True] + heard[one, False] >= num for one in versions)


@pytest.mark.parametrize("num_each", [pytest.param(1, marks=pytest.mark.long), 2])
def test_another_tokeniser_rolled_out_under_one_name_gives_no_wrong_answer(
    redis: RedisServer, tiny: ServedText, other: ServedText, num_each: int
) -> None:
    """Nor a failed one: the new workers are greeted before the old ones are told to go."""

    async def test() -> None:
        async with model_fleet(redis, num_routers=2) as fleet:
            await soon(lambda: routers_answer(fleet))
            old = [
                await fleet.add(f"old-{number}", tiny, model="m", revision="of-old")
                for number in range(num_each)
            ]
            await soon(lambda: each_lists(fleet, {"m"}))
            meant = {
                "m@of-old": tiny.answer_to(PROMPT, num_tokens=NUM_TOKENS),
                "m@of-new": other.answer_to(PROMPT, num_tokens=NUM_TOKENS),
            }
            heard, is_over = Counter[tuple[str, bool]](), asyncio.Event()

            async def ask(client: httpx.AsyncClient) -> None:
                while not is_over.is_set():
                    version, text = said(await complete(client, "m"))
                    heard[version, text == meant[version]] += 1

            async with asyncio.TaskGroup() as tasks:
                for client in [*fleet.clients, *fleet.clients]:
                    tasks.create_task(ask(client), name="client")
                for number, worker in enumerate(old):
                    await fleet.add(f"new-{number}", other, model="m", revision="of-new")
                    before = heard.copy()
                    await soon(lambda: all_answered(heard - before, meant, 20))  # noqa: B023
                    await fleet.drain(worker)
                before = heard.copy()
                await soon(lambda: all_answered(heard - before, ["m@of-new"], 20))
                is_over.set()
            assert heard.keys() == {("m@of-old", True), ("m@of-new", True)}
            assert not fleet.given_another_text(PROMPT)

    asyncio.run(test())
