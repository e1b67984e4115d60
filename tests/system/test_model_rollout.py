"""Real workers, whose model has another tokeniser from one to the next, under one name and load."""

import asyncio
import json
import shutil
import signal
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from support.eventually import START_S, eventually, soon
from support.processes import ROOT, Process, process
from support.redis_server import RedisServer, free_port

TINY = ROOT / "models" / "tiny"
PROMPT = "Once upon a time there was a small"
NUM_TOKENS = 12
SWAPPED = ("Ġthe", "Ġa")


def with_another_tokeniser(folder: Path) -> Path:
    """The same weights; two words have each other's number, so a prompt of one text is another
    prompt in the other."""
    shutil.copytree(TINY, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = SWAPPED
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(tokenizer, ensure_ascii=False))
    return folder


def worker(stack: ExitStack, redis: RedisServer, name: str, model: Path, ready: int) -> Process:
    started = stack.enter_context(
        process(
            f"{name.partition('-')[0]}_worker",
            *("--model", str(model), "--served-name", "m", "--redis", redis.url, "--worker", name),
            *("--threads", "1", "--kv-blocks", "256", "--device", "cpu", "--drain-s", "20"),
            *("--metrics-port", str(ready)),
        )
    )
    eventually(lambda: is_ready(ready), START_S, f"{name} is ready")
    return started


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    except httpx.TransportError:
        return False


def router(redis: RedisServer, port: int) -> AbstractContextManager[Process]:
    flags = ("--redis", redis.url, "--port", str(port), "--local-prefill", "never")
    return process("router", *flags)


@dataclass(frozen=True, slots=True)
class Answer:
    revision: str
    """As `x-baton-model` says; of both models, whose weights are the same, the same."""
    text: str


async def settled(port: int) -> Answer:
    """Of a router, once it is ready."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        await soon(lambda: answers(client), START_S, "a router is ready")
        return await complete(client)


async def complete(client: httpx.AsyncClient) -> Answer:
    body = {"model": "m", "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return Answer(answer.headers["x-baton-model"], answer.json()["choices"][0]["text"])


@pytest.mark.long
def test_no_answer_mixes_the_tokenisers_of_old_and_new_workers(
    redis: RedisServer, tmp_path: Path
) -> None:
    """The last worker of either role is replaced, each as soon as its successor is ready. What is
    right is what a router says that has met one of the models alone."""
    other = with_another_tokeniser(tmp_path / "other")
    ports = [free_port() for _ in range(2)]
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(router(redis, port))
        old = [worker(stack, redis, name, TINY, free_port()) for name in ("prefill-0", "decode-0")]

        async def test() -> None:
            is_over, heard = asyncio.Event(), Counter[Answer]()

            async def ask(port: int) -> None:
                url = f"http://127.0.0.1:{port}"
                async with httpx.AsyncClient(base_url=url, timeout=120) as client:
                    while not is_over.is_set():
                        heard[await complete(client)] += 1

            before_all = await settled(ports[0])  # of a router that has met no other text
            assert await settled(ports[1]) == before_all
            async with asyncio.TaskGroup() as tasks:
                for port in ports:
                    tasks.create_task(ask(port), name=f"client of {port}")
                for before, name in zip(old, ("prefill-1", "decode-1"), strict=True):
                    await asyncio.to_thread(worker, stack, redis, name, other, free_port())
                    before.ask(signal.SIGTERM)
                for before in old:
                    assert await asyncio.to_thread(before.wait, 60) == 0
                await soon(lambda: len(heard) > 1, START_S, "new workers answer")
                is_over.set()
            fresh = free_port()
            stack.enter_context(router(redis, fresh))
            after_all = await settled(fresh)  # the same: the old workers are gone
            assert after_all.text != before_all.text
            assert [await settled(port) for port in ports] == [after_all] * 2
            assert heard.keys() == {before_all, after_all}

        asyncio.run(test())


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/ready")).status_code == 200
    except httpx.TransportError:
        return False
